from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from lidiv_backend.clicks import Click
from lidiv_backend.learning.gate import Comparison
from lidiv_backend.simulate_lab.day import Day, DayError, read_day, write_day
from lidiv_backend.simulate_lab.outcome import draw, measured, table
from lidiv_backend.simulate_lab.timing import Timing
from tests.tiny import Drawn, PaintedSet, painted_alike

DAY = Day(
    images=40,
    objects=80,
    clicks=320,
    accepted=0.25,
    run=1,
    cause="annotations",
    message="Promoted: it needs fewer clicks than the model in use.",
    promoted=True,
    version="v2",
    before="base",
    served="v2",
    seconds=471.0,
    parts={"training": 300.0, "training CPU": 290.0, "gate": 99.0, "gate CPU": 88.0},
    timing=Timing(before=(0.2, 0.2), training=(0.25,), webhooks=41, prompt=40),
)


class Painter(Drawn):
    """Shows the clicked object, or only what is left of the first click."""

    def __init__(self, *, whole: bool) -> None:
        self.whole = whole
        self.version = f"painter-{whole}"

    def draw(
        self, image: NDArray[np.uint8], clicks: Sequence[Click]
    ) -> tuple[NDArray[np.bool_], float]:
        first = clicks[0]
        mask = painted_alike(image, first)
        if not self.whole and len(clicks) < 3:
            mask &= np.arange(mask.shape[1]) <= first.x
        return mask, 1.0


def test_a_day_survives_being_written(tmp_path: Path) -> None:
    write_day(tmp_path / "day.json", DAY)
    assert read_day(tmp_path / "day.json") == DAY
    (tmp_path / "day.json").write_text('{"images": 3}')
    with pytest.raises(DayError, match="damaged"):
        read_day(tmp_path / "day.json")


def test_clicks_are_counted_once_and_told(tmp_path: Path) -> None:
    images = PaintedSet(length=5)
    path = tmp_path / "counted.json"
    found = measured(path, Painter(whole=True), Painter(whole=False), images, objects=1)
    assert (found.candidate, found.in_use, found.objects) == (1.0, 3.0, 5)
    again = measured(path, Painter(whole=False), Painter(whole=False), images, objects=1)
    assert again == found
    lines = table(DAY, [found]).splitlines()
    assert "| painted (5) | 5 | 3.00 | 1.00 | -2.00 (-2.00 to -2.00) | -67 % |" in lines
    assert "| training | 300 | 290 |" in lines
    assert "| trigger to verdict | 471 | |" in lines
    assert f"> {DAY.message}" in lines
    (clicks,) = (line for line in lines if line.startswith("A click"))
    assert "took 200 ms" in clicks
    assert "250 ms while the model was (medians of 2 and 1 clicks; +25 %)." in clicks
    assert "Of 41 webhooks, 40 were answered within 100 ms." in lines


def test_a_poisoned_day_has_nothing_to_measure() -> None:
    refused = dataclasses.replace(
        DAY, promoted=False, message="Kept, not promoted: worse.", timing=Timing()
    )
    text = table(refused, [])
    assert "> Kept, not promoted: worse." in text
    assert "before" not in text


def test_the_picture_shows_masks_and_no_photograph(tmp_path: Path) -> None:
    images = PaintedSet(length=3)
    draw(images, Painter(whole=False), Painter(whole=True), tmp_path / "docs" / "picture.png")
    picture = cv2.imread(str(tmp_path / "docs" / "picture.png"))
    assert picture is not None
    colours = {tuple(pixel) for pixel in picture.reshape(-1, 3)[:, ::-1].tolist()}
    photograph = {tuple(pixel) for pixel in images[0].rgb.reshape(-1, 3).tolist()}
    assert not colours & photograph


def test_comparisons_survive_their_file(tmp_path: Path) -> None:
    path = tmp_path / "counted.json"
    found = measured(
        path, Painter(whole=True), Painter(whole=False), PaintedSet(length=3), objects=2
    )
    assert isinstance(found, Comparison)
    assert len(found.per_image) == 3
