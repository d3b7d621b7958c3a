from __future__ import annotations

import math
import os
from collections.abc import Sequence

import cv2
import numpy as np
import pytest

from lidiv_backend.clicks import Click
from lidiv_backend.evaluation.datasets import open_data_set
from lidiv_backend.labelstudio.boxes import BadBoxError, Box, start_in_box
from lidiv_backend.predictor import Predictor, Proposal
from lidiv_backend.training.simulation import boundary_distance
from tests.fake_engine import FakeEmbedding, FakeEngine, disk_mask

IMAGE = FakeEmbedding("image", 200, 400)
# Disks of radius 24, 40, 60 and 80 fit into 80 x 80 best with the second.
SQUARE = Box(x=160.0, y=60.0, width=80.0, height=80.0)


def test_the_proposal_that_fills_the_rectangle_comes_first() -> None:
    engine = FakeEngine()
    start = start_in_box(engine, IMAGE, SQUARE)
    best = start.proposals[0].mask
    assert best.any()
    assert not (best & ~SQUARE.mask(height=200, width=400)).any()
    # With the first answer as the previous mask, nothing is smaller than what fitted best.
    (first, no_mask), *_, (second, previous) = engine.calls
    assert (first, no_mask) == ((Click(x=200.0, y=100.0),), None)
    assert previous is not None
    assert previous.sum() == pytest.approx(np.pi * 40**2, rel=0.02)
    assert second[0] == first[0]
    assert start.clicks == second


def test_negative_clicks_lie_just_outside_the_sides() -> None:
    start = start_in_box(FakeEngine(), IMAGE, SQUARE)
    negative = [(click.x, click.y) for click in start.clicks if not click.positive]
    assert negative == [(156.0, 100.0), (244.0, 100.0), (200.0, 56.0), (200.0, 144.0)]


def test_where_the_image_ends_there_is_no_negative_click() -> None:
    whole = Box(x=-0.5, y=-0.5, width=400.0, height=200.0)
    start = start_in_box(FakeEngine(), IMAGE, whole)
    assert [click.positive for click in start.clicks] == [True]


def test_a_rectangle_whose_middle_is_outside() -> None:
    with pytest.raises(BadBoxError):
        start_in_box(FakeEngine(), IMAGE, Box(x=380.0, y=10.0, width=100.0, height=20.0))


@pytest.mark.parametrize("degrees", [0.0, 30.0, 90.0, 215.0])
def test_a_turned_rectangle_is_what_opencv_draws(degrees: float) -> None:
    box = Box(x=200.0, y=100.0, width=70.0, height=40.0, degrees=degrees)
    middle = box.point(0.5, 0.5)
    corners = cv2.boxPoints((middle, (70.0, 40.0), degrees))
    expected = cv2.fillConvexPoly(np.zeros((200, 400), np.uint8), np.int32(np.rint(corners)), 1)
    drawn = box.mask(height=200, width=400)
    assert (drawn != expected.astype(bool)).mean() < 0.002
    rows, columns = np.nonzero(drawn)
    inside = [box.contains(x, y) for x, y in zip(columns, rows, strict=True)]
    assert np.mean(inside) > 0.93  # all but the rim, which it covers partly
    assert box.fit(drawn) > 0.9


def test_where_the_middle_is_a_part_other_places_are_tried() -> None:
    class Coffee(FakeEngine):
        """A cup whose coffee is a thing of its own, in the middle of the cup."""

        def predict(
            self, image: FakeEmbedding, clicks: Sequence[Click], previous: object = None
        ) -> list[Proposal]:
            radius = 10 if math.hypot(clicks[0].x - 200, clicks[0].y - 100) < 10 else 40
            mask = disk_mask(image.height, image.width, 200, 100, radius)
            return [Proposal(mask=mask, score=0.9, head=0)]

    start = start_in_box(Coffee(), IMAGE, SQUARE)
    assert start.proposals[0].mask.sum() == pytest.approx(np.pi * 40**2, rel=0.05)
    assert start.clicks[0] == Click(x=200.0, y=120.0)


def test_a_speck_does_not_say_how_far_a_mask_reaches() -> None:
    mask = disk_mask(200, 400, 200, 100, 10)
    fits = SQUARE.fit(mask)
    mask[62, 236:238] = True
    assert SQUARE.fit(mask) == pytest.approx(fits, abs=0.02)


def test_what_fits() -> None:
    box = Box(x=99.5, y=49.5, width=100.0, height=60.0)
    full = box.mask(height=200, width=400)
    half = full.copy()
    half[:, 150:] = False
    doubled = np.zeros_like(full)
    doubled[49:111, 99:301] = True
    assert box.fit(full) > 0.95
    assert box.fit(half) == pytest.approx(0.5, abs=0.03)
    assert box.fit(doubled) == pytest.approx(0.5, abs=0.03)
    assert box.fit(~full & ~doubled) == 0.0
    assert box.fit(np.zeros_like(full)) == 0.0


def test_large_masks_are_compared_on_a_grid() -> None:
    box = Box(x=999.5, y=499.5, width=1000.0, height=600.0)
    mask = box.mask(height=3000, width=4000)
    assert box.fit(mask) == pytest.approx(1.0, abs=0.05)


@pytest.mark.soak
@pytest.mark.skipif("LIDIV_DATA" not in os.environ, reason="LIDIV_DATA is not set")
def test_a_rectangle_says_more_than_a_click() -> None:
    """Mean IoU with GrabCut's objects: their rectangles, and a click in their innermost point."""
    predictor = Predictor.from_pretrained("default", device="cpu")
    images = open_data_set("grabcut")
    of_boxes, of_clicks = [], []
    for number in range(15):
        item = images[number].objects[0]
        counted = np.ones_like(item.mask) if item.ignore is None else ~item.ignore
        wanted = item.mask & counted
        rows, columns = np.nonzero(item.mask)
        top, left = rows.min() - 0.5, columns.min() - 0.5
        box = Box(
            x=float(left),
            y=float(top),
            width=float(columns.max() + 0.5 - left),
            height=float(rows.max() + 0.5 - top),
        )
        image = predictor.embed(images[number].rgb)
        distance = boundary_distance(item.mask)
        row, column = np.unravel_index(int(distance.argmax()), distance.shape)
        click = Click(x=float(column), y=float(row))
        for ious, proposals in (
            (of_boxes, start_in_box(predictor, image, box).proposals),
            (of_clicks, predictor.predict(image, [click])),
        ):
            mask = proposals[0].mask & counted
            ious.append((mask & wanted).sum() / (mask | wanted).sum())
    print(f"rectangle {np.mean(of_boxes):.3f}, click {np.mean(of_clicks):.3f}")
    assert np.mean(of_boxes) > np.mean(of_clicks)
