"""Clicks, and the one place where a click becomes a tensor.

Coordinates are pixels from the top left, x to the right, y down; the centre of the first pixel is
(0, 0). A batch of clicks travels as a float32 tensor of shape (B, K, 3): x, y and a sign, +1 for a
positive click, -1 for a negative one, 0 for padding.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lidiv_backend.errors import BadClickError

#: Distances are truncated here (in pixels), Section 3 of the paper.
TRUNCATION = 255.0
#: So many distances are computed at a time.
_TOGETHER = 2**22


@dataclass(frozen=True, slots=True, kw_only=True)
class Click:
    """One click of an annotator.

    Parameters
    ----------
    x, y
        Pixels from the top left of the upright image, x to the right.
    positive
        True where the annotator says "this belongs to it", False for "this does not".
    """

    x: float
    y: float
    positive: bool = True


def validate_clicks(clicks: Iterable[Click], *, height: int, width: int) -> None:
    """Refuse clicks that no image can take.

    Parameters
    ----------
    clicks
        The clicks so far.
    height, width
        Size of the image in pixels.

    Raises
    ------
    BadClickError
        If a coordinate is not finite or lies outside the image.
    """
    for number, click in enumerate(clicks, start=1):
        if not (math.isfinite(click.x) and math.isfinite(click.y)):
            raise BadClickError(
                f"Click {number} has coordinates ({click.x}, {click.y}), which are not numbers.",
                remedy="Send finite pixel coordinates.",
            )
        if not (-0.5 <= click.x <= width - 0.5 and -0.5 <= click.y <= height - 0.5):
            raise BadClickError(
                f"Click {number} at ({click.x:g}, {click.y:g}) is outside the image, which is "
                f"{width} x {height} pixels.",
                remedy="Click inside the image.",
            )


def pack_clicks(
    batch: Sequence[Sequence[Click]], *, scale: tuple[float, float] = (1.0, 1.0), room: int = 1
) -> Tensor:
    """Put clicks into one padded tensor.

    Parameters
    ----------
    batch
        One sequence of clicks for each example.
    scale
        Pixels of the network's input for each pixel of the image, along x and along y: the clicks
        are moved with the pixel grid, whose corner is at (-0.5, -0.5).
    room
        Least K.

    Returns
    -------
    Tensor
        float32 (B, K, 3) of x, y, sign; K is the longest sequence, or ``room``, and padding has
        sign 0.
    """
    longest = max([room, *(len(clicks) for clicks in batch)])
    packed = torch.zeros(len(batch), longest, 3)
    for row, clicks in enumerate(batch):
        for column, click in enumerate(clicks):
            packed[row, column, 0] = (click.x + 0.5) * scale[0] - 0.5
            packed[row, column, 1] = (click.y + 0.5) * scale[1] - 0.5
            packed[row, column, 2] = 1.0 if click.positive else -1.0
    return packed


def sampling_places(packed: Tensor, size: tuple[int, int], *, stride: float = 1.0) -> Tensor:
    """Where clicks are, as `torch.nn.functional.grid_sample` wants it, ``align_corners=False``.

    Parameters
    ----------
    packed
        float32 (B, K, 3), see `pack_clicks`.
    size
        Height and width of the map that is sampled, in cells.
    stride
        Pixels for each cell.

    Returns
    -------
    Tensor
        float32 (B, K, 2) of x, y: -1 and 1 are the edges of the map.
    """
    height, width = size
    x, y = (
        (packed[..., axis] + 0.5) / (cells * stride) * 2 - 1
        for axis, cells in enumerate((width, height))
    )
    return torch.stack((x, y), -1)


def squared_distances(packed: Tensor, size: tuple[int, int], *, stride: float = 1.0) -> Tensor:
    """Squared distance to the nearest click of each sign.

    Parameters
    ----------
    packed
        float32 (B, K, 3), see `pack_clicks`.
    size
        Height and width of the maps, in cells.
    stride
        Pixels for each cell; distances are measured from the cell's centre.

    Returns
    -------
    Tensor
        float32 (B, 2, H, W), pixels squared, to positive and to negative clicks; infinite where
        there is none.
    """
    rows, columns = (
        (torch.arange(cells, device=packed.device, dtype=packed.dtype) + 0.5) * stride - 0.5
        for cells in size
    )
    x, y, sign = packed.unbind(2)
    ours = torch.stack((sign > 0, sign < 0), 2)
    y = y.unsqueeze(2).masked_fill(~ours, torch.inf)
    # Several clicks at a time, or a GPU would wait for its orders; but not so many that all of
    # their distances, (B, K, 2, H, W), take up the memory.
    together = max(1, _TOGETHER // max(1, len(packed) * 2 * rows.numel() * columns.numel()))
    nearest: Tensor | None = None
    parts = (torch.split(part, together, 1) for part in (x, y))
    for some_x, some_y in zip(*parts, strict=True):
        across = (columns - some_x[..., None, None, None]) ** 2
        down = (rows.unsqueeze(1) - some_y[..., None, None]) ** 2
        near: Tensor = (down + across).amin(1)
        nearest = near if nearest is None else torch.minimum(nearest, near)
    assert nearest is not None  # noqa: S101 - there is always room for one click
    return nearest


def distance_maps(
    packed: Tensor,
    size: tuple[int, int],
    *,
    stride: float = 1.0,
    squared: Tensor | None = None,
) -> Tensor:
    """Truncated Euclidean distance transforms of the clicks (Eq. 1).

    Parameters
    ----------
    packed
        float32 (B, K, 3), see `pack_clicks`.
    size
        Height and width of the maps, in cells.
    stride
        Pixels for each cell; distances are measured in pixels from the cell's centre.
    squared
        `squared_distances` of the same, where they are known; computed otherwise.

    Returns
    -------
    Tensor
        float32 (B, 2, H, W) in [0, 1]: distance to the nearest positive and to the nearest
        negative click, truncated at 255 pixels and divided by 255. A map with no click is 1.
    """
    if squared is None:
        squared = squared_distances(packed, size, stride=stride)
    return squared.clamp(max=TRUNCATION**2).sqrt_().div_(TRUNCATION)


def click_maps(
    packed: Tensor,
    size: tuple[int, int],
    *,
    stride: float = 1.0,
    radius: float = 0.0,
    squared: Tensor | None = None,
) -> Tensor:
    """Binary maps of the clicks, S_p and S_n of the paper.

    Parameters
    ----------
    packed
        float32 (B, K, 3), see `pack_clicks`.
    size
        Height and width of the maps, in cells.
    stride
        Pixels for each cell.
    radius
        0 marks the one cell that was clicked; more marks the cells whose centres are at most so
        many pixels away, and always the clicked cell.
    squared
        `squared_distances` of the same, where they are known; a radius needs them.

    Returns
    -------
    Tensor
        float32 (B, 2, H, W) of 0 and 1: positive clicks, negative clicks.
    """
    height, width = size
    if radius > 0:
        if squared is None:
            squared = squared_distances(packed, size, stride=stride)
        maps = (squared <= radius**2).to(packed.dtype)
    else:
        maps = packed.new_zeros(packed.shape[0], 2, height, width)
    cells = ((packed[..., :2] + 0.5) / stride).floor().long()
    columns = cells[..., 0].clamp(0, width - 1)
    rows = cells[..., 1].clamp(0, height - 1)
    sign = packed[..., 2]
    # Padding adds nothing to the cell it points to. No index depends on how many clicks are of
    # which sign: on a GPU the processor would have to wait for that number.
    places = ((sign < 0).long() * height + rows) * width + columns
    maps.view(len(maps), -1).scatter_add_(1, places, sign.abs())
    return maps.clamp_(max=1.0)
