"""Where a further click is imagined."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from lidiv_backend.ahead import points_beside


def rectangle(top: int, bottom: int, left: int, right: int) -> NDArray[np.bool_]:
    mask = np.zeros((120, 200), bool)
    mask[top:bottom, left:right] = True
    return mask


def test_one_point_on_each_side_as_far_away_as_asked() -> None:
    # 40 x 40 pixels: half of the square root of the area is 20.
    points = points_beside(rectangle(40, 80, 80, 120), 0.5)
    right, lower, left, upper = points
    assert right[0] == pytest.approx(119 + 20, abs=1)
    assert left[0] == pytest.approx(80 - 20, abs=1)
    assert lower[1] == pytest.approx(79 + 20, abs=1)
    assert upper[1] == pytest.approx(40 - 20, abs=1)
    for _, y in (right, left):
        assert y == pytest.approx(59.5, abs=2)
    for x, _ in (lower, upper):
        assert x == pytest.approx(99.5, abs=2)


def test_beside_a_small_mask_they_keep_off_its_outline() -> None:
    mask = rectangle(60, 62, 100, 102)
    points = points_beside(mask, 0.3)
    assert len(points) == 4
    rows, columns = np.nonzero(mask)
    for x, y in points:
        assert np.hypot(rows - y, columns - x).min() == pytest.approx(6, abs=1)


def test_none_where_the_image_has_no_room() -> None:
    # To the left and above there is nothing, to the right and below there is.
    points = points_beside(rectangle(0, 40, 0, 40), 0.5)
    assert len(points) == 2
    assert all(x < 200 and y < 120 for x, y in points)
    assert points_beside(rectangle(0, 120, 0, 200), 0.5) == []


def test_none_for_an_empty_mask() -> None:
    assert points_beside(np.zeros((20, 30), bool), 0.5) == []
