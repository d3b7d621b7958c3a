"""The clicks of annotators go with the image through crop, zoom and mirror."""

from __future__ import annotations

import dataclasses

import numpy as np

from lidiv_backend.clicks import Click
from lidiv_backend.records import AnnotatedImage
from lidiv_backend.training.draws import Draws
from tests.tiny import SMALL_CROPS, PaintedSet


class ClickedSet(PaintedSet):
    """Each object has a click at its middle, one just inside its top left and one outside it."""

    def __getitem__(self, index: int) -> AnnotatedImage:
        image = super().__getitem__(index)
        objects = []
        for item in image.objects:
            rows, columns = np.flatnonzero(item.mask.any(1)), np.flatnonzero(item.mask.any(0))
            places = [
                (columns.mean(), rows.mean(), True),
                (columns[0], rows[0], True),
                (columns[0] - 2, rows[0] - 2, False),
            ]
            clicks = tuple(Click(x=float(x), y=float(y), positive=sign) for x, y, sign in places)
            objects.append(dataclasses.replace(item, clicks=clicks))
        return dataclasses.replace(image, objects=tuple(objects))


def test_clicks_stay_on_their_objects() -> None:
    draws = Draws(ClickedSet(), SMALL_CROPS, length=200)
    whole = 0
    for index in range(60):
        draw = draws[index]
        for mask, clicks in zip(draw["masks"].numpy(), draw["clicks"], strict=True):
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            for number, click in enumerate(clicks):
                assert -0.5 <= click.x <= 47.5
                assert -0.5 <= click.y <= 47.5
                assert click.positive == (number < 2)
            if len(clicks) == 3 and rows[0] > 0 and rows[-1] < 47 and columns[-1] < 47:
                whole += 1
                assert mask[round(clicks[0].y), round(clicks[0].x)]
                # The corner click: at the top, and left or (mirrored) right; to about a pixel.
                assert abs(clicks[1].y - rows[0]) <= 1.1
                assert min(abs(clicks[1].x - columns[0]), abs(clicks[1].x - columns[-1])) <= 1.1
                assert not mask[max(round(clicks[2].y), 0), min(max(round(clicks[2].x), 0), 47)]
    assert whole > 10


def test_clicks_behind_one_that_is_cut_off_are_left_out() -> None:
    draws = Draws(
        ClickedSet(), dataclasses.replace(SMALL_CROPS, crop=16, zoom=(1.0, 1.0)), length=200
    )
    counts = {len(clicks) for index in range(40) for clicks in draws[index]["clicks"]}
    assert counts <= {0, 1, 2, 3}
    assert counts & {0, 1, 2}


def test_clicks_stay_on_their_objects_in_a_collage() -> None:
    config = dataclasses.replace(SMALL_CROPS, crop=144, collages=1.0, targets=1, zoom=(1.0, 1.0))
    draws = Draws(ClickedSet(count=1), config, length=200)
    counts = []
    for index in range(60):
        draw = draws[index]
        mask, clicks = draw["masks"][0].numpy(), draw["clicks"][0]
        counts.append(len(clicks))
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        for click, tolerance in zip(clicks, (0.0, 1.1, 6.0), strict=False):
            # In the object, at its corner, and beside it but not as far as in another image.
            assert rows[0] - tolerance <= click.y <= rows[-1] + tolerance
            assert columns[0] - tolerance <= click.x <= columns[-1] + tolerance
        if len(clicks) == 3:
            assert mask[round(clicks[0].y), round(clicks[0].x)]
    assert counts.count(3) > 10
    assert min(counts) < 3  # what is beyond the image's cell is cut off


def test_two_objects_that_were_merged_have_no_clicks() -> None:
    config = dataclasses.replace(SMALL_CROPS, merged=1.0, targets=1)
    draws = Draws(ClickedSet(), config, length=200)
    assert all(not draws[index]["clicks"][0] for index in range(20))


def test_a_set_without_clicks_has_none() -> None:
    assert Draws(PaintedSet(), SMALL_CROPS, length=5)[0]["clicks"] == [[], []]
