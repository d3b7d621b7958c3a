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
    batch: Sequence[Sequence[Click]], *, scale: tuple[float, float] = (1.0, 1.0)
) -> Tensor:
    """Put clicks into one padded tensor.

    Parameters
    ----------
    batch
        One sequence of clicks for each example.
    scale
        Pixels of the network's input for each pixel of the image, along x and along y: the clicks
        are moved with the pixel grid, whose corner is at (-0.5, -0.5).

    Returns
    -------
    Tensor
        float32 (B, K, 3) of x, y, sign; K is the longest sequence (at least 1), padding has sign 0.
    """
    longest = max([1, *(len(clicks) for clicks in batch)])
    packed = torch.zeros(len(batch), longest, 3)
    for row, clicks in enumerate(batch):
        for column, click in enumerate(clicks):
            packed[row, column, 0] = (click.x + 0.5) * scale[0] - 0.5
            packed[row, column, 1] = (click.y + 0.5) * scale[1] - 0.5
            packed[row, column, 2] = 1.0 if click.positive else -1.0
    return packed


def _grid(size: tuple[int, int], stride: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Centres of the cells of a strided grid, in pixels of the unstrided one."""
    height, width = size
    rows = (torch.arange(height, device=like.device, dtype=like.dtype) + 0.5) * stride - 0.5
    columns = (torch.arange(width, device=like.device, dtype=like.dtype) + 0.5) * stride - 0.5
    return rows.view(1, height, 1), columns.view(1, 1, width)


def distance_maps(packed: Tensor, size: tuple[int, int], *, stride: float = 1.0) -> Tensor:
    """Truncated Euclidean distance transforms of the clicks (Eq. 1).

    Parameters
    ----------
    packed
        float32 (B, K, 3), see `pack_clicks`.
    size
        Height and width of the maps, in cells.
    stride
        Pixels for each cell; distances are measured in pixels from the cell's centre.

    Returns
    -------
    Tensor
        float32 (B, 2, H, W) in [0, 1]: distance to the nearest positive and to the nearest
        negative click, truncated at 255 pixels and divided by 255. A map with no click is 1.
    """
    squared = _squared_distances(packed, size, stride)
    return squared.clamp_(max=TRUNCATION**2).sqrt_().div_(TRUNCATION)


def _squared_distances(packed: Tensor, size: tuple[int, int], stride: float) -> Tensor:
    """(B, 2, H, W), pixels squared to the nearest click of each sign; infinite without one."""
    rows, columns = _grid(size, stride, packed)
    maps = packed.new_full((packed.shape[0], 2, *size), torch.inf)
    # Several clicks at a time, or a GPU would wait for its orders; but not so many that all of
    # their distances, (B, K, H, W), take up the memory.
    together = max(1, _TOGETHER // max(1, maps.numel()))
    for clicks in torch.split(packed, together, 1):
        x, y, sign = (part[..., None, None] for part in clicks.unbind(2))
        across = (columns - x) ** 2
        for channel, wanted in enumerate((sign > 0, sign < 0)):
            down = (rows - y.masked_fill(~wanted, torch.inf)) ** 2
            maps[:, channel] = torch.minimum(maps[:, channel], (down + across).amin(1))
    return maps


def click_maps(
    packed: Tensor, size: tuple[int, int], *, stride: float = 1.0, radius: float = 0.0
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

    Returns
    -------
    Tensor
        float32 (B, 2, H, W) of 0 and 1: positive clicks, negative clicks.
    """
    height, width = size
    maps = packed.new_zeros(packed.shape[0], 2, height, width)
    if radius > 0:
        maps = (_squared_distances(packed, size, stride) <= radius**2).to(maps.dtype)
    columns = ((packed[..., 0] + 0.5) / stride).floor().long().clamp_(0, width - 1)
    rows = ((packed[..., 1] + 0.5) / stride).floor().long().clamp_(0, height - 1)
    examples = torch.arange(packed.shape[0], device=packed.device).view(-1, 1).expand_as(rows)
    for channel, wanted in enumerate((packed[..., 2] > 0, packed[..., 2] < 0)):
        maps[examples[wanted], channel, rows[wanted], columns[wanted]] = 1.0
    return maps
