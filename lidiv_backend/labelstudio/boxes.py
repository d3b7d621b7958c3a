"""Rectangles as prompts: what stands for one, and which proposal fits it.

The networks take clicks, so a rectangle becomes some: a positive one in its middle (or beside it,
where the middle is a hole, or a part such as the coffee in a cup), and negative ones just outside
its sides, with the first click's best proposal as the previous mask. Of all proposals those come
first that fill the rectangle without leaving it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lidiv_backend.clicks import Click
from lidiv_backend.errors import BadRequestError
from lidiv_backend.labelstudio.engine import Engine
from lidiv_backend.labelstudio.interaction import Start
from lidiv_backend.predictor import Proposal

#: Where the positive click is tried, as shares of the rectangle's sides from its middle, until a
#: proposal fits at least so well.
TRIES, GOOD_FIT = ((0.0, 0.0), (0.0, 0.25), (-0.25, 0.0), (0.25, 0.0), (0.0, -0.25)), 0.7
#: This share of a mask's pixels at either end does not say how far it reaches: specks.
SPECKS = 0.01
#: How far outside the middle of each side a negative click lies: share of the side across it, and
#: at least so many pixels.
OUTSIDE, OUTSIDE_PIXELS = 0.05, 3.0
#: Masks are compared with the rectangle on a grid of about so many points.
_POINTS = 250_000


class BadBoxError(BadRequestError):
    """A rectangle has no area, or lies outside the image."""

    status = 422
    kind = "bad rectangle"


@dataclass(frozen=True, kw_only=True, slots=True)
class Box:
    """A rectangle in pixels.

    Parameters
    ----------
    x, y
        Its top left corner, see `lidiv_backend.clicks`.
    width, height
        Its sides, positive.
    degrees
        It is turned by so much, clockwise, about that corner.
    """

    x: float
    y: float
    width: float
    height: float
    degrees: float = 0.0

    def point(self, across: float, down: float) -> tuple[float, float]:
        """Give x and y of a point: (0, 0) is the top left corner, (1, 1) the bottom right one."""
        angle = math.radians(self.degrees)
        right, below = across * self.width, down * self.height
        return (
            self.x + right * math.cos(angle) - below * math.sin(angle),
            self.y + right * math.sin(angle) + below * math.cos(angle),
        )

    def contains(self, x: float, y: float) -> bool:
        """Tell whether a point is inside."""
        across, down = self._shares(np.float64(x), np.float64(y))
        return bool(0 <= across <= 1 and 0 <= down <= 1)

    @property
    def area(self) -> float:
        """Pixels squared."""
        return self.width * self.height

    def mask(self, *, height: int, width: int) -> NDArray[np.bool_]:
        """Draw it, bool (H, W): the pixels that it covers at least partly."""
        corners = np.array([self.point(*corner) for corner in ((0, 0), (1, 0), (1, 1), (0, 1))])
        drawn = np.zeros((height, width), dtype=np.uint8)
        # Far outside the image nothing is drawn, and coordinates must fit into integers.
        bounded = np.clip(np.rint(corners), -(2.0**14), 2.0**15)
        cv2.fillConvexPoly(drawn, bounded.astype(np.int32), 1)
        return drawn.astype(np.bool_)

    def fit(self, mask: NDArray[np.bool_]) -> float:
        """Say how well a mask fits: it reaches all sides and does not go beyond them.

        Parameters
        ----------
        mask
            bool (H, W).

        Returns
        -------
        float
            In [0, 1]: IoU of the rectangle and the extent of the mask inside it, times the share of
            the mask that is inside; 0 for an empty mask.
        """
        height, width = mask.shape
        step = max(1, round(math.sqrt(height * width / _POINTS)))
        rows, columns = np.nonzero(mask[::step, ::step])
        if not rows.size:
            return 0.0
        across, down = self._shares(
            columns.astype(np.float64) * step, rows.astype(np.float64) * step
        )
        inside = (across >= 0) & (across <= 1) & (down >= 0) & (down <= 1)
        if not inside.any():
            return 0.0
        extent = 1.0
        for shares, side in ((across[inside], self.width), (down[inside], self.height)):
            low, high = np.quantile(shares, (SPECKS, 1 - SPECKS))
            # A pixel on the grid stands for its neighbours, too.
            extent *= min(float(high - low) / (1 - 2 * SPECKS) + step / side, 1.0)
        return extent * float(inside.mean())

    def _shares(
        self, x: NDArray[np.float64] | np.float64, y: NDArray[np.float64] | np.float64
    ) -> tuple[Any, Any]:
        """Where points lie: shares of the sides from the top left corner."""
        angle = math.radians(self.degrees)
        right, below = x - self.x, y - self.y
        across = right * math.cos(angle) + below * math.sin(angle)
        down = below * math.cos(angle) - right * math.sin(angle)
        return across / self.width, down / self.height


def start_in_box(engine: Engine, image: Any, box: Box) -> Start:
    """Find what is inside a rectangle.

    Parameters
    ----------
    engine
        The model.
    image
        The image's embedding, made by this engine.
    box
        The rectangle.

    Returns
    -------
    Start
        The best proposals, cut off at the rectangle, best first; at least one.

    Raises
    ------
    BadBoxError
        If its middle is outside the image.
    """
    height, width = image.height, image.width
    inside = box.mask(height=height, width=width)

    def cut(proposal: Proposal) -> Proposal:
        score = box.fit(proposal.mask) * proposal.score
        return Proposal(mask=proposal.mask & inside, score=score, head=proposal.head)

    tried: list[tuple[Proposal, Click]] = []
    for across, down in TRIES:
        click = _click(box.point(0.5 + across, 0.5 + down), height=height, width=width)
        if click is not None:
            proposals = engine.predict(image, [click])
            tried += [(cut(proposal), click) for proposal in proposals]
            if max(box.fit(proposal.mask) for proposal in proposals) >= GOOD_FIT:
                break
    if not tried:
        raise BadBoxError(
            "The rectangle's middle is outside the image.",
            remedy="Delete the rectangle and draw it inside the image.",
        )
    first, click = max(tried, key=lambda item: item[0].score)
    prompts = (click, *_around(box, height=height, width=width))
    found = [cut(each) for each in engine.predict(image, prompts, previous=first.mask)]
    if first.score > max(each.score for each in found):
        # The clicks outside did more harm than good.
        found.append(first)
    found.sort(key=lambda each: each.score, reverse=True)
    return Start(key=repr(box), clicks=prompts, proposals=tuple(found))


def _around(box: Box, *, height: int, width: int) -> Sequence[Click]:
    """Negative clicks outside the middles of the sides, as far as the image has room for them."""
    across = max(OUTSIDE, OUTSIDE_PIXELS / box.width)
    down = max(OUTSIDE, OUTSIDE_PIXELS / box.height)
    points = ((-across, 0.5), (1 + across, 0.5), (0.5, -down), (0.5, 1 + down))
    clicks = (
        _click(box.point(*point), height=height, width=width, positive=False) for point in points
    )
    return [click for click in clicks if click is not None]


def _click(
    point: tuple[float, float], *, height: int, width: int, positive: bool = True
) -> Click | None:
    """A click at a point, or None outside the image."""
    x, y = point
    if 0 <= x <= width - 1 and 0 <= y <= height - 1:
        return Click(x=x, y=y, positive=positive)
    return None
