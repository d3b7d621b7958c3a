"""Where to look closer: the window of an image that holds the object, once it is known roughly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from lidiv_backend.clicks import Click

#: The window is at least so many times as large as the object, along each axis.
_MARGIN = 1.4
#: Its shorter side is at least this part of what its longer one needs.
_SHAPE = 0.5
#: Sizes grow by this factor, and centres lie this part of a size apart, so that the window stays
#: where it is when the mask changes a little.
_GROWTH, _SHIFT = 1.2, 0.1
#: Clicks nearer to the window's border than this part of it are taken for outside.
_BORDER = 0.05
#: A pixel of the image becomes at most so many pixels of the network's input: there is no more to
#: be seen.
_MOST = 3.0
#: Looking closer is only worth it if the object becomes so much larger.
_LEAST_GAIN = 1.2


@dataclass(frozen=True, kw_only=True)
class Window:
    """A part of an image, in its pixels.

    Parameters
    ----------
    left, top
        First column and row.
    width, height
        Size.
    """

    left: int
    top: int
    width: int
    height: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Its rows and columns in an array as large as the image."""
        return (
            slice(self.top, self.top + self.height),
            slice(self.left, self.left + self.width),
        )

    def moved(self, click: Click) -> Click:
        """A click on the image as a click on the window."""
        return Click(x=click.x - self.left, y=click.y - self.top, positive=click.positive)


@dataclass(frozen=True, kw_only=True, eq=False)
class Shown:
    """A mask that was shown; there is nothing outside of its window.

    Parameters
    ----------
    mask
        float32 (h, w) in [0, 1], at any resolution.
    window
        The part of the image that it covers.
    """

    mask: NDArray[np.float32]
    window: Window

    def seen_in(self, window: Window, size: tuple[int, int]) -> NDArray[np.float32]:
        """The same mask in another window, (height, width) as asked for.

        Parameters
        ----------
        window
            A part of the same image.
        size
            Height and width of the result.
        """
        part = self._cut(window)
        if part is not None:
            how = cv2.INTER_AREA if size[1] < part.shape[1] else cv2.INTER_LINEAR
            same = part.shape == size
            return part if same else np.asarray(cv2.resize(part, size[::-1], interpolation=how))
        height, width = size
        scale = self.mask.shape[1] / self.window.width, self.mask.shape[0] / self.window.height
        # From the middle of a cell of the result to a place in the mask.
        step_x, step_y = window.width / width * scale[0], window.height / height * scale[1]
        first_x = (window.left - self.window.left) * scale[0] + step_x / 2 - 0.5
        first_y = (window.top - self.window.top) * scale[1] + step_y / 2 - 0.5
        matrix = np.array([[step_x, 0.0, first_x], [0.0, step_y, first_y]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return np.asarray(cv2.warpAffine(self.mask, matrix, (width, height), flags=flags))

    def _cut(self, window: Window) -> NDArray[np.float32] | None:
        """The cells that cover a window exactly; None where there are no such cells."""
        mine = self.window
        if window == mine:
            return self.mask
        left, top = window.left - mine.left, window.top - mine.top
        is_inside = left >= 0 and top >= 0
        is_inside &= left + window.width <= mine.width and top + window.height <= mine.height
        if not is_inside or self.mask.shape != (mine.height, mine.width):
            return None
        moved = replace(window, left=left, top=top)
        return np.ascontiguousarray(self.mask[moved.slices])


def choose_window(
    shown: Shown, clicks: Sequence[Click], *, height: int, width: int, side: int, density: float
) -> Window | None:
    """Choose where to look closer.

    Parameters
    ----------
    shown
        The mask before the last click.
    clicks
        All of them.
    height, width
        Size of the image in pixels.
    side
        Longer side of the network's input for a window, pixels.
    density
        Pixels of the network's input for each pixel of the image, where it sees the whole image.

    Returns
    -------
    Window or None
        It holds the mask and all clicks; None where looking closer shows no more.
    """
    x, y = _extent(shown)
    if not x:
        return None
    window = _around(x, y, height=height, width=width, side=side)
    outside = [click for click in clicks if not _is_well_inside(window, click, height, width)]
    if outside:
        # All of them, in their order, so that the window does not depend on which were outside.
        x = (min(x[0], *(c.x for c in clicks)), max(x[1], *(c.x + 1 for c in clicks)))
        y = (min(y[0], *(c.y for c in clicks)), max(y[1], *(c.y + 1 for c in clicks)))
        window = _around(x, y, height=height, width=width, side=side)
    gain = min(side / max(window.height, window.width), _MOST) / density
    return window if gain >= _LEAST_GAIN else None


def _extent(shown: Shown) -> tuple[tuple[float, float] | tuple[()], tuple[float, float]]:
    """First and last edge of a mask along x and y, in the image's pixels; empty if it is."""
    hard = shown.mask > 0.5
    rows, columns = np.flatnonzero(hard.any(1)), np.flatnonzero(hard.any(0))
    if not len(rows):
        return (), (0.0, 0.0)
    window = shown.window
    step_x, step_y = window.width / hard.shape[1], window.height / hard.shape[0]
    return (
        (window.left + columns[0] * step_x, window.left + (columns[-1] + 1) * step_x),
        (window.top + rows[0] * step_y, window.top + (rows[-1] + 1) * step_y),
    )


def _around(
    x: tuple[float, float], y: tuple[float, float], *, height: int, width: int, side: int
) -> Window:
    longest = max(x[1] - x[0], y[1] - y[0])
    (left, columns), (top, rows) = (
        _span(first, last, longest=longest, length=length, least=side / _MOST)
        for (first, last), length in ((x, width), (y, height))
    )
    return Window(left=left, top=top, width=columns, height=rows)


def _span(
    first: float, last: float, *, longest: float, length: int, least: float
) -> tuple[int, int]:
    """Where a window begins along an axis, and how long it is."""
    needed = max(max(last - first, longest * _SHAPE) * _MARGIN, least)
    size = round(_GROWTH ** math.ceil(math.log(needed, _GROWTH) - 1e-9))
    if size >= length:
        return 0, length
    step = size * _SHIFT
    middle = round((first + last) / 2 / step) * step
    return round(min(max(middle - size / 2, 0), length - size)), size


def _is_well_inside(window: Window, click: Click, height: int, width: int) -> bool:
    """Whether a click is in a window, and not near a border that is not the image's own."""
    at = (
        (click.x, window.left, window.width, width),
        (click.y, window.top, window.height, height),
    )
    return all(
        (first == 0 or place >= first + size * _BORDER)
        and (first + size == length or place <= first + size * (1 - _BORDER) - 1)
        for place, first, size, length in at
    )
