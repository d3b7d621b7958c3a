from pathlib import Path

import cv2
import numpy as np
import pytest

from lidiv_backend.cli import main
from tests import tiny


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    cv2.imwrite(str(path), pixels)
    return path


def test_picture_and_mask_are_written(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tiny.saved(tmp_path / "weights")
    picture, mask = tmp_path / "proposals.png", tmp_path / "mask.png"
    words = ["segment", str(photo), "--click", "12,8", "--click", "-20,9", "--preset", str(weights)]

    assert main([*words, "--out", str(picture), "--mask", str(mask)]) == 0

    assert "proposal 1 of" in capsys.readouterr().out
    assert cv2.imread(str(picture)) is not None
    written = cv2.imread(str(mask), cv2.IMREAD_UNCHANGED)
    assert written.shape == (30, 40)
    assert set(np.unique(written)) <= {0, 255}


def test_a_picture_that_cannot_be_written_is_said(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tiny.saved(tmp_path / "weights")
    nowhere = tmp_path / "missing" / "proposals.png"

    words = ["segment", str(photo), "--click", "12,8", "--preset", str(weights)]
    assert main([*words, "--out", str(nowhere)]) == 1

    assert "could not be written" in capsys.readouterr().err


def test_a_click_outside_the_photo_is_said(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tiny.saved(tmp_path / "weights")

    assert main(["segment", str(photo), "--click", "400,8", "--preset", str(weights)]) == 1

    assert "outside the image" in capsys.readouterr().err
