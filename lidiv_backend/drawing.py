"""Pictures of clicks and masks, for people to look at."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from lidiv_backend.clicks import Click

Rgb = NDArray[np.uint8]

#: Colours as RGB.
MASK_COLOUR = (255, 64, 64)
POSITIVE_COLOUR = (40, 200, 80)
NEGATIVE_COLOUR = (230, 40, 40)
_WHITE = (255, 255, 255)
_CAPTION_HEIGHT = 26


def overlay(
    rgb: Rgb,
    mask: NDArray[np.bool_] | None = None,
    clicks: Sequence[Click] = (),
    *,
    colour: tuple[int, int, int] = MASK_COLOUR,
) -> Rgb:
    """Lay a mask and clicks over an image.

    Parameters
    ----------
    rgb
        uint8 (H, W, 3); it is not changed.
    mask
        bool (H, W), tinted and outlined, or None.
    clicks
        Drawn as disks: positive ones green with a plus, negative ones red with a minus.
    colour
        RGB of the tint.

    Returns
    -------
    ndarray
        uint8 (H, W, 3).
    """
    picture = np.ascontiguousarray(rgb).copy()
    size = max(picture.shape[:2])
    if mask is not None:
        tinted = cv2.addWeighted(picture, 0.5, np.full_like(picture, colour), 0.5, 0)
        picture[mask] = tinted[mask]
        outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, outlines, -1, _WHITE, max(1, size // 500))
    radius = max(4, size // 80)
    for click in clicks:
        centre = (round(click.x), round(click.y))
        fill = POSITIVE_COLOUR if click.positive else NEGATIVE_COLOUR
        cv2.circle(picture, centre, radius, fill, -1, cv2.LINE_AA)
        cv2.circle(picture, centre, radius, _WHITE, max(1, radius // 4), cv2.LINE_AA)
        arm, width = radius // 2, max(1, radius // 4)
        left, right = (centre[0] - arm, centre[1]), (centre[0] + arm, centre[1])
        cv2.line(picture, left, right, _WHITE, width, cv2.LINE_AA)
        if click.positive:
            top, bottom = (centre[0], centre[1] - arm), (centre[0], centre[1] + arm)
            cv2.line(picture, top, bottom, _WHITE, width, cv2.LINE_AA)
    return picture


def contact_sheet(
    tiles: Sequence[tuple[str, Rgb]], *, columns: int, longest_side: int = 360
) -> Rgb:
    """Arrange captioned pictures in rows.

    Parameters
    ----------
    tiles
        Caption and uint8 (H, W, 3) each.
    columns
        Pictures in a row.
    longest_side
        Each picture is reduced to this, in pixels.

    Returns
    -------
    ndarray
        uint8 (H', W', 3).
    """
    shrunk = []
    for caption, picture in tiles:
        factor = min(1.0, longest_side / max(picture.shape[:2]))
        size = (max(1, round(picture.shape[1] * factor)), max(1, round(picture.shape[0] * factor)))
        small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        shrunk.append((caption, small.astype(np.uint8, copy=False)))
    width = max(picture.shape[1] for _, picture in shrunk) + 8
    height = max(picture.shape[0] for _, picture in shrunk) + 8
    rows = -(-len(shrunk) // columns)
    sheet = np.full((rows * (height + _CAPTION_HEIGHT), columns * width, 3), 255, np.uint8)
    for number, (caption, picture) in enumerate(shrunk):
        top = number // columns * (height + _CAPTION_HEIGHT)
        left = number % columns * width
        place = (left + 4, top + _CAPTION_HEIGHT - 8)
        cv2.putText(
            sheet, caption, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (30, 30, 30), 1, cv2.LINE_AA
        )
        top, left = top + _CAPTION_HEIGHT, left + 4
        sheet[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return sheet
