"""What a candidate is asked where a lab has no base set: photographs with objects pasted in.

What the preset makes of a click at any place of a photograph is often no object: it needs ten
clicks to find such a mask again itself, and whoever differs from it a little looks worse. So its
masks only say where something can be cut out. Pasted into another photograph, an object's mask is
known to the pixel whatever any model thinks of it, and there can be as many as it takes to tell a
small loss from chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from lidiv_backend.clicks import Click
from lidiv_backend.errors import DataError, LidivError
from lidiv_backend.evaluation.protocols import Method, intersection_over_union
from lidiv_backend.images import read_rgb
from lidiv_backend.learning.gate import BaseSet
from lidiv_backend.photos import write_photos
from lidiv_backend.records import AnnotatedImage, ImageSet, ObjectMask

# Where a model is clicked for its own masks, in parts of height and width.
_GRID = (0.1, 0.3, 0.5, 0.7, 0.9)
# The least IoU that the model must expect of a mask of its own, where it expects any.
_SURE = 0.5
# Smaller masks are noise, larger ones the background.
_SHARES = (0.003, 0.4)
# Most of a mask is one piece, and it does not run along the photograph's edge: pixels on the edge
# for each pixel of the side of a square as large as the mask.
_PIECE, _EDGE = 0.85, 1.5
# Two masks of this IoU are one.
_SAME = 0.5
# Share of the photograph that a pasted object takes, and how many of them there are.
_PASTED_SHARES = (0.015, 0.3)
_PASTED_OBJECTS = 3
_PLACES = 50


def photographs(preset: Method, folder: Path, *, images: int) -> tuple[BaseSet, ImageSet | None]:
    """Make a base set of photographs from installed packages.

    Parameters
    ----------
    preset
        The model that LiDiv came with.
    folder
        Where the photographs are put.
    images
        So many pictures with pasted objects are made.

    Returns
    -------
    BaseSet
        One half of the photographs, with objects of each other pasted in, for the gate.
    ImageSet or None
        The other half as they are, with the preset's own masks, to be replayed in training; the
        gate never asks about these.
    """
    try:
        photos = write_photos(folder)
    except LidivError as error:
        nothing = BaseSet(
            images=None,
            about="Whether it forgot anything was not measured: LIDIV_BASE_DATA is not set, and "
            f"there are no photographs ({error.message.rstrip('.')})",
        )
        return nothing, None
    asked = BaseSet(
        images=Pasted(OwnMasks(preset, photos[::2]), length=images),
        about="photographs with pasted objects (LIDIV_BASE_DATA is not set)",
    )
    return asked, OwnMasks(preset, photos[1::2])


@dataclass(frozen=True, kw_only=True, eq=False)
class Cutting:
    """An object cut out of a photograph.

    Parameters
    ----------
    rgb
        uint8 (H, W, 3), the photograph around it.
    mask
        bool (H, W), touching all four sides.
    """

    rgb: NDArray[np.uint8]
    mask: NDArray[np.bool_]


class OwnMasks:
    """Photographs with what a model is sure to see in them; an `ImageSet`.

    Parameters
    ----------
    method
        The preset.
    photos
        Files of photographs.
    """

    def __init__(self, method: Method, photos: Sequence[Path]) -> None:
        self.name = "photographs"
        self._method = method
        self._photos = tuple(photos)
        self._known: dict[int, AnnotatedImage] = {}

    def __len__(self) -> int:
        return len(self._photos)

    def __getitem__(self, index: int) -> AnnotatedImage:
        image = self.photo(index)
        if not image.objects:
            raise DataError(f"The model is sure of nothing in {image.name}.")
        return image

    def photo(self, index: int) -> AnnotatedImage:
        """Give a photograph also where the model is sure of nothing in it."""
        if index not in self._known:
            self._known[index] = self._made(self._photos[index])
        return self._known[index]

    def _made(self, path: Path) -> AnnotatedImage:
        rgb = read_rgb(path)
        height, width = rgb.shape[:2]
        embedding = self._method.embed(rgb)
        expects = getattr(self._method, "expects_iou", False)
        found: list[NDArray[np.bool_]] = []
        for y in _GRID:
            for x in _GRID:
                click = Click(x=x * (width - 1), y=y * (height - 1), positive=True)
                best = self._method.predict(embedding, [click])[0]
                mask = None if expects and best.score < _SURE else _piece(best.mask)
                if mask is not None and not any(
                    intersection_over_union(mask, other) > _SAME for other in found
                ):
                    found.append(mask)
        objects = tuple(
            ObjectMask(name=f"{path.stem} {number}", mask=mask)
            for number, mask in enumerate(found, start=1)
        )
        return AnnotatedImage(name=path.stem, rgb=rgb, objects=objects)


class Pasted:
    """Photographs with objects of other photographs pasted in; an `ImageSet`.

    Parameters
    ----------
    photos
        Where objects are cut out, and what they are pasted into.
    length
        So many pictures are made.
    seed
        Of what is pasted where.
    """

    def __init__(self, photos: OwnMasks, *, length: int, seed: int = 0) -> None:
        self.name = photos.name
        self._photos = photos
        self._length = length
        self._seed = seed
        self._cuttings: dict[int, list[Cutting]] = {}

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> AnnotatedImage:
        rng = np.random.default_rng([self._seed, index])
        place = index % len(self._photos)
        photo = self._photos.photo(place)
        cuttings = [
            cutting
            for other in range(len(self._photos))
            if other != place
            for cutting in self._cut(other)
        ]
        if not cuttings:
            raise DataError(f"There is nothing to paste into {photo.name}.")
        rgb = photo.rgb.copy()
        taken = np.zeros(rgb.shape[:2], dtype=bool)
        name = f"{photo.name} {index}"
        objects = []
        chosen = rng.choice(len(cuttings), min(_PASTED_OBJECTS, len(cuttings)), replace=False)
        for number, which in enumerate(chosen, start=1):
            mask = _paste(cuttings[which], rgb, taken, rng)
            if mask is not None:
                objects.append(ObjectMask(name=f"{name} {number}", mask=mask))
        return AnnotatedImage(name=name, rgb=rgb, objects=tuple(objects))

    def _cut(self, index: int) -> list[Cutting]:
        if index not in self._cuttings:
            image = self._photos.photo(index)
            self._cuttings[index] = [_cut(image.rgb, item.mask) for item in image.objects]
        return self._cuttings[index]


def _piece(mask: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
    """The largest piece of a mask, without holes; None if it is no object."""
    count, labels, parts, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    if count < 2:
        return None
    place = 1 + int(parts[1:, cv2.CC_STAT_AREA].argmax())
    piece = labels == place
    pixels = np.count_nonzero(piece)
    on_edge = sum(map(np.count_nonzero, (piece[0], piece[-1], piece[:, 0], piece[:, -1])))
    if (
        not _SHARES[0] <= pixels / mask.size <= _SHARES[1]
        or pixels < _PIECE * np.count_nonzero(mask)
        or on_edge > _EDGE * pixels**0.5
    ):
        return None
    outlines, _ = cv2.findContours(piece.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = cv2.drawContours(np.zeros(mask.shape, np.uint8), outlines, -1, 1, cv2.FILLED)
    return filled.astype(bool)


def _cut(rgb: NDArray[np.uint8], mask: NDArray[np.bool_]) -> Cutting:
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    box = (slice(top, top + height), slice(left, left + width))
    return Cutting(rgb=rgb[box], mask=mask[box])


def _paste(
    cutting: Cutting,
    rgb: NDArray[np.uint8],
    taken: NDArray[np.bool_],
    rng: np.random.Generator,
) -> NDArray[np.bool_] | None:
    """Paste an object where nothing is pasted yet; changes `rgb` and `taken`.

    Returns
    -------
    ndarray or None
        Its mask; None where there is no room.
    """
    height, width = taken.shape
    share = np.exp(rng.uniform(*np.log(_PASTED_SHARES)))
    factor = (share * taken.size / np.count_nonzero(cutting.mask)) ** 0.5
    rows, columns = cutting.mask.shape
    factor = min(factor, 0.9 * height / rows, 0.9 * width / columns)
    size = max(1, round(columns * factor)), max(1, round(rows * factor))
    flip = slice(None, None, -1 if rng.random() < 0.5 else 1)
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    pixels = cv2.resize(cutting.rgb[:, flip], size, interpolation=how)
    cover = cv2.resize(cutting.mask[:, flip].astype(np.float32), size, interpolation=how)
    for _ in range(_PLACES):
        top = int(rng.integers(height - size[1] + 1))
        left = int(rng.integers(width - size[0] + 1))
        box = (slice(top, top + size[1]), slice(left, left + size[0]))
        if taken[box].any():
            continue
        mask = np.zeros_like(taken)
        mask[box] = cover > 0.5
        if not mask.any():
            return None
        taken[box] = True
        blended = rgb[box] + cover[..., None] * (pixels.astype(np.float32) - rgb[box])
        rgb[box] = blended.round().astype(np.uint8)
        return mask
    return None
