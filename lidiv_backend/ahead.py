"""Where else an annotator might click who meant more than the first mask shows.

One click on the middle of a flower may mean the flower, or the bunch. Where f is sure of the middle
its M masks are nearly the same, and there is nothing to step on to. So a further click is imagined,
beside the mask on each of its four sides: what f makes of both clicks is an alternative.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

#: Nearer than this many pixels, a click beside a small mask would be on its outline.
_NEAREST = 6.0


def points_beside(mask: NDArray[np.bool_], distance: float) -> list[tuple[int, int]]:
    """Find a point beside a mask on its right, lower, left and upper side.

    Parameters
    ----------
    mask
        bool (H, W).
    distance
        How far from the mask, as a share of the square root of its area.

    Returns
    -------
    list of tuple
        x and y in pixels, at most four; none for a side on which the image has no room, and none
        for a mask that is empty.
    """
    area = np.count_nonzero(mask)
    if not area:
        return []
    wanted = max(_NEAREST, distance * float(np.sqrt(area)))
    away = cv2.distanceTransform((~mask).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    rows, columns = np.nonzero(mask)
    y, x = np.ogrid[: mask.shape[0], : mask.shape[1]]
    angle = np.arctan2(y - rows.mean(), x - columns.mean())
    is_beside = (away > 0.5 * wanted) & (away < 1.5 * wanted)
    points = []
    for side in range(4):
        turned = np.abs((angle - side * np.pi / 2 + np.pi) % (2 * np.pi) - np.pi)
        cost = np.where(
            is_beside & (turned < np.pi / 4), turned + np.abs(away - wanted) / wanted, np.inf
        )
        best = int(cost.argmin())
        if np.isfinite(cost.flat[best]):
            row, column = divmod(best, mask.shape[1])
            points.append((column, row))
    return points
