import json
from pathlib import Path

import pytest

from lidiv_backend import benchmark
from lidiv_backend.cli import main
from tests import tiny


def test_every_size_is_measured_and_put_into_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "_SIZES", ((32, 24), (64, 48)))
    weights = tiny.saved(tmp_path / "weights")
    page, numbers = tmp_path / "page.md", tmp_path / "numbers.json"
    page.write_text("<!-- measured: speed -->\n<!-- end: speed -->\n")
    words = ["benchmark", "--preset", str(weights), "--device", "cpu", "--repeat", "6"]

    assert main([*words, "--images", "2", "--json", str(numbers), "--insert", str(page)]) == 0

    timings = json.loads(numbers.read_text())
    assert [(row["width"], row["height"]) for row in timings] == [(32, 24), (64, 48)]
    assert all(0 < row["click_median"] <= row["click_p95"] for row in timings)
    assert all(row["embed_median"] > 0 and row["memory"] > 0 for row in timings)
    assert "32 x 24" in page.read_text()
    assert f"lidiv benchmark --preset {weights}" in page.read_text()
    assert "64 x 48" in capsys.readouterr().out


def test_sizes_can_be_named(tmp_path: Path) -> None:
    weights = tiny.saved(tmp_path / "weights")
    page, numbers = tmp_path / "page.md", tmp_path / "numbers.json"
    page.write_text("<!-- measured: speed -->\n<!-- end: speed -->\n")
    words = ["benchmark", "--preset", str(weights), "--device", "cpu", "--repeat", "1"]
    words += ["--images", "1", "--json", str(numbers), "--insert", str(page)]

    assert main([*words, "--size", "40x24", "--size", "16x32"]) == 0

    timings = json.loads(numbers.read_text())
    assert [(row["width"], row["height"]) for row in timings] == [(40, 24), (16, 32)]
    assert f"lidiv benchmark --preset {weights} --size 40x24 --size 16x32" in page.read_text()


@pytest.mark.parametrize("size", ["640", "x480", "640x0", "640x480x3", "-3x4"])
def test_what_is_no_size_is_refused(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["benchmark", f"--size={size}"])
    assert f"'{size}' is no size; write it like 640x480" in capsys.readouterr().err
