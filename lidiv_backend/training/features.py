"""What the frozen encoder sees in images that a training shows it again and again.

With ``views`` in its configuration a training draws its pictures from a fixed number of views of
each image (see `Draws`). Their features are computed when a view is first seen and are kept on the
disk, where later steps, and later trainings on the same views, find them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from lidiv_backend.errors import BadRequestError
from lidiv_backend.networks.encoders import LevelSpec
from lidiv_backend.weights import encoder_path, sha256_of

_NOTE = "features.json"
#: Levels that are finer than the grid, or than this, are kept as means of so many pixels.
_COARSEST_CELL = 8


class FeatureStore:
    """Features of views, in bfloat16, computed when they are first asked for.

    Parameters
    ----------
    folder
        Where they are kept; files are sparse and grow as views are seen.
    count
        Number of views.
    levels
        Of the encoder.
    crop
        Side of a view, in pixels.
    grid
        Pixels for each cell on which the network is trained.
    made_for
        What decides what a view looks like.

    Raises
    ------
    BadRequestError
        If the folder holds features of other views.
    """

    def __init__(
        self,
        folder: Path,
        *,
        count: int,
        levels: Sequence[LevelSpec],
        crop: int,
        grid: int,
        made_for: dict[str, Any],
    ) -> None:
        cell = min(grid, _COARSEST_CELL)
        note = {**made_for, "count": count, "crop": crop, "cell": cell}
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / _NOTE
        if not path.exists():
            path.write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")
        elif json.loads(path.read_text(encoding="utf-8")) != note:
            raise BadRequestError(
                f"The features in {folder} are of other pictures, or of another encoder.",
                remedy="Name another folder by --features, or delete this one.",
            )
        self._pools = [max(1, cell // level.stride) for level in levels]
        sides = [-(-crop // max(level.stride, cell)) for level in levels]
        self._kept = [
            _open(folder / f"{level.name}.bf16", np.uint16, (count, side, side, level.channels))
            for level, side in zip(levels, sides, strict=True)
        ]
        self._known = _open(folder / "known.u8", np.uint8, (count,))

    def get(
        self, views: Sequence[int], rgb: Tensor, compute: Callable[[Tensor], tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        """Features of views.

        Parameters
        ----------
        views
            Their numbers.
        rgb
            float (I, 3, H, W), what they look like.
        compute
            The encoder, for those that are not known yet.

        Returns
        -------
        tuple of Tensor
            bfloat16 (I, C, h, w) for each level.
        """
        # A view may be there twice.
        unknown = {view: i for i, view in enumerate(views) if not self._known[view]}
        if unknown:
            missing = list(unknown.values())
            computed = compute(rgb[missing])
            for kept, level, pool in zip(self._kept, computed, self._pools, strict=True):
                means = F.avg_pool2d(level.float(), pool) if pool > 1 else level
                bits = means.permute(0, 2, 3, 1).to(torch.bfloat16).cpu().view(torch.uint16)
                for view, values in zip(unknown, bits.numpy(), strict=True):
                    kept[view] = values
            # Last: who finds the mark finds the features.
            self._known[list(unknown)] = 1
        found = []
        for kept in self._kept:
            read = torch.from_numpy(np.stack([kept[view] for view in views]))
            found.append(read.view(torch.bfloat16).permute(0, 3, 1, 2).to(rgb.device))
        return tuple(found)


def describe_views(encoder: str, data: str, images: int, **settings: Any) -> dict[str, Any]:
    """What decides the features of views, for `FeatureStore`.

    Parameters
    ----------
    encoder
        Key in `ENCODERS`.
    data, images
        Name and size of the data set.
    settings
        Those by which views are drawn.
    """
    path = encoder_path(encoder)
    checksum = sha256_of(path) if path.is_file() else None
    return {"encoder": encoder, "sha256": checksum, "data": data, "images": images, **settings}


def _open(path: Path, kind: DTypeLike, shape: tuple[int, ...]) -> NDArray[Any]:
    if path.exists():
        return np.memmap(path, dtype=kind, mode="r+", shape=shape)
    return np.memmap(path, dtype=kind, mode="w+", shape=shape)
