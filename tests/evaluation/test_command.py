from pathlib import Path

import pytest

from lidiv_backend.cli import main


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--protocol", "cetre", "Known are: centre, sampled"),
        ("--seeds", "0", "at least one seed"),
        ("--stop-at", "95", "at most 1"),
        ("--methods", "a=", "names no method"),
        ("--methods", "no-such-preset", "no weights 'no-such-preset'"),
    ],
)
def test_wrong_options_are_answered_with_what_is_possible(
    option: str, value: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {"--methods": "graph-cut", "--data-sets": f"folder:{tmp_path}", option: value}
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    import cv2
    import numpy as np

    for name in ("images", "masks"):
        cv2.imwrite(str(tmp_path / name / "a.png"), np.full((4, 4), 255, np.uint8))
    flat = [part for pair in words.items() for part in pair]
    assert main(["evaluate", *flat, "--out", str(tmp_path / "out")]) == 1
    assert said in capsys.readouterr().err
