"""Training examples: an image is drawn, cut, turned and coloured, with some of its objects."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Protocol, TypedDict, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from lidiv_backend.clicks import Click
from lidiv_backend.errors import DataError
from lidiv_backend.records import ImageSet, ObjectMask
from lidiv_backend.training.config import TrainingConfig

#: An object counts in a crop if so many of its pixels are there.
_LEAST_PIXELS = 40
#: Seeds what views look like, with their numbers.
_VIEWS = 8498
#: Padding beside an image that does not fill the crop.
_GREY = 124
#: A collage has from so many to so many images along each axis.
_FEWEST_CELLS, _MOST_CELLS = 2, 4
#: An image is at most so many times as large as it has to be to fill its cell of a collage.
_CELL_ZOOM = 1.6
#: A close-up's side is so many times the shorter side of the object's box, at least and at most.
_CLOSE_UP = (0.4, 1.0)

#: Image, objects and valid pixels, which are transformed together.
_Bundle = tuple[tv_tensors.Image, tv_tensors.Mask, tv_tensors.Mask]


class Draw(TypedDict):
    """One image with T objects.

    ``rgb`` is uint8 (3, H, W), ``masks`` is bool (T, H, W), ``valid`` is bool (T, H, W): pixels
    that count. ``clicks`` are, for each object, those of the annotator who made the mask, in order
    and up to the first that is not in the crop; empty where they are not known. ``view`` is the
    number of the picture among all views of all images; -1 where each example has its own.
    """

    rgb: Tensor
    masks: Tensor
    valid: Tensor
    clicks: list[list[Click]]
    view: int


class _Entry(Protocol):
    """What an index says of a mask."""

    @property
    def kind(self) -> str: ...

    @property
    def source(self) -> str: ...


@runtime_checkable
class _Listed(Protocol):
    """A data set that knows its masks without reading them."""

    def __len__(self) -> int: ...

    def entries(self, index: int) -> Sequence[_Entry]: ...


class Draws(Dataset[Draw]):
    """An endless, seeded sequence of training examples.

    Example i depends on the seed and on i alone, so that a run resumes where it stopped and any
    number of worker processes gives the same examples.

    Parameters
    ----------
    images
        Where they come from. If it has ``entries(i)``, images are drawn in proportion to the
        weights of their masks' kinds, else evenly.
    config
        Crop, zoom, kinds, colours, seed.
    length
        Number of examples.
    augment
        Whether examples are mirrored and coloured; not for validation.

    Raises
    ------
    DataError
        If the set has no mask of the kinds that are asked for.
    """

    def __init__(
        self, images: ImageSet, config: TrainingConfig, *, length: int, augment: bool = True
    ) -> None:
        self.images = images
        self.config = config
        self.length = length
        self.augment = augment
        self._cumulative = np.cumsum(_image_weights(images, config.kinds))
        if not len(images) or self._cumulative[-1] <= 0:
            raise DataError(
                f"The data set {images.name} has no mask of the kinds {', '.join(config.kinds)}.",
                remedy="Name other kinds, or another data set.",
            )

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Draw:
        rng = np.random.default_rng([self.config.seed, index])
        reason = ""
        for _ in range(20):
            number = self._choose_image(rng)
            try:
                return self._draw(number, rng)
            except DataError as error:
                # A record that cannot be used: another one takes its place.
                reason = error.message
        raise DataError(
            f"Twenty images of {self.images.name} in a row could not be used; the last: {reason}",
            remedy="Look at the data set, its kinds of masks and the size of its objects.",
        )

    def _choose_image(self, rng: np.random.Generator) -> int:
        where = rng.random() * self._cumulative[-1]
        return int(np.searchsorted(self._cumulative, where, side="right"))

    def _draw(self, number: int, rng: np.random.Generator) -> Draw:
        image = self.images[number]
        weights = np.array([self.config.kinds.get(item.kind, 0.0) for item in image.objects])
        wanted = np.flatnonzero(weights)
        if not len(wanted):
            raise DataError(f"{image.name} has no mask of the kinds that are asked for.")
        shares = weights[wanted] / weights.sum()
        order = wanted[rng.choice(len(wanted), len(wanted), replace=False, p=shares)]
        chosen = [image.objects[i] for i in order]
        masks = np.stack([item.mask for item in chosen])
        counted = np.stack([_counted(item) for item in chosen])
        if not masks[0].any():
            raise DataError(f"{image.name} has an empty mask.")
        clicks = [item.clicks for item in chosen]
        if len(chosen) > 1 and rng.random() < self.config.merged:
            # Two objects that are meant together are one more reading of a click on either.
            masks[0] |= masks[1]
            counted[0] &= counted[1]
            clicks[0] = ()
        bundle = (
            tv_tensors.Image(torch.tensor(image.rgb).permute(2, 0, 1)),
            tv_tensors.Mask(torch.from_numpy(masks)),
            tv_tensors.Mask(torch.from_numpy(counted)),
        )
        view, frame, aim = -1, rng, masks[0]
        if self.config.views:
            # The same picture whatever the seed and the object, so that its features can be kept.
            view = number * self.config.views + int(rng.integers(self.config.views))
            frame, aim = np.random.default_rng([_VIEWS, view]), np.ones_like(masks[0])
        left = top = row = column = 0
        if self.config.crop is None:
            bundle = self._limit(bundle)
            height, width = bundle[0].shape[-2:]
        else:
            cells = self._count_cells(rng)
            side = -(-self.config.crop // cells)
            height, width, top, left = self._place(aim, side, frame, fill=cells > 1)
            bundle = _cut(bundle, height, width, top, left, side)
            if cells > 1:
                row, column = (side * int(place) for place in rng.integers(cells, size=2))
                bundle = self._surround(bundle, row, column, cells, rng)
        flip = self.augment and frame.random() < 0.5
        if flip:
            bundle = _flip(bundle)
        if self.augment:
            bundle = self._colour(bundle, frame)
        picture, objects, valid = bundle
        keep = self._present(objects, valid)

        # Of a collage, its image has one cell; the last ones are cut off where they do not fit.
        extents = (picture.shape[-2] - row, picture.shape[-1] - column)
        size = extents if self.config.crop is None else tuple(min(side, n) for n in extents)

        def cut(click: Click) -> Click:
            x = (click.x + 0.5) * width / image.rgb.shape[1] - 0.5 - left
            y = (click.y + 0.5) * height / image.rgb.shape[0] - 0.5 - top
            return replace(click, x=x, y=y)

        def placed(click: Click) -> Click:
            x, y = click.x + column, click.y + row
            return replace(click, x=picture.shape[-1] - 1 - x if flip else x, y=y)

        return {
            "rgb": picture.as_subclass(Tensor),
            "masks": objects[keep].as_subclass(Tensor),
            "valid": valid[keep].as_subclass(Tensor),
            "clicks": [
                [placed(click) for click in _until_outside(map(cut, clicks[index]), size)]
                for index in keep
            ],
            "view": view,
        }

    def _limit(self, bundle: _Bundle) -> _Bundle:
        """Shrink what the trained network will never see at its full size either."""
        height, width = bundle[0].shape[-2:]
        limit = self.config.inference.max_pixels
        if limit is None or height * width <= limit:
            return bundle
        factor = (limit / (height * width)) ** 0.5
        return _resize(bundle, max(1, int(height * factor)), max(1, int(width * factor)))

    def _count_cells(self, rng: np.random.Generator) -> int:
        """Draw how many images are shown along each axis."""
        if not self.config.collages or rng.random() >= self.config.collages:
            return 1
        return int(rng.integers(_FEWEST_CELLS, _MOST_CELLS + 1))

    def _place(
        self, target: NDArray[np.bool_], side: int, rng: np.random.Generator, *, fill: bool = False
    ) -> tuple[int, int, int, int]:
        """Draw a size for the image, and where in it to cut a square with most of the target.

        Returns height and width of the scaled image, and the square's top and left in it, which
        are negative where the image does not fill the square; with ``fill`` it always does.
        """
        rows, columns = np.flatnonzero(target.any(1)), np.flatnonzero(target.any(0))
        sides = (rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1)
        if fill:
            least = side / min(target.shape)
            factor = least * rng.uniform(1.0, _CELL_ZOOM)
            if max(sides) * factor > side:
                factor = max(side / max(sides) * rng.uniform(0.7, 1.0), least)
        else:
            factor = self._draw_factor(sides, side, rng)
        # Rounded up, or an image that should fill the square might fall short by a pixel.
        whole = math.ceil if fill else round
        height, width = (max(8, whole(length * factor)) for length in target.shape)
        top = _corner(rows[0] * factor, (rows[-1] + 1) * factor, height, side, rng)
        left = _corner(columns[0] * factor, (columns[-1] + 1) * factor, width, side, rng)
        return height, width, top, left

    def _draw_factor(self, sides: tuple[int, int], side: int, rng: np.random.Generator) -> float:
        """By how much the image is scaled for a square around an object of so many pixels."""
        least, most = self.config.zoom
        factor = float(np.exp(rng.uniform(np.log(least), np.log(most))))
        if self.config.close_ups and rng.random() < self.config.close_ups:
            close = side / (min(sides) * rng.uniform(*_CLOSE_UP))
            if close <= most:  # else there is too little of it to look at so closely
                return close
        if max(sides) * factor > side and rng.random() < 0.8:
            factor = max(side / max(sides) * rng.uniform(0.7, 1.0), least * 0.5)
        return factor

    def _surround(
        self, bundle: _Bundle, row: int, column: int, cells: int, rng: np.random.Generator
    ) -> _Bundle:
        """Put an image into a collage, where the others have nothing of its objects."""
        assert self.config.crop is not None  # noqa: S101
        side, extent = bundle[0].shape[-1], self.config.crop
        picture = torch.empty(3, side * cells, side * cells, dtype=torch.uint8)
        for y in range(0, side * cells, side):
            for x in range(0, side * cells, side):
                part = bundle[0] if (y, x) == (row, column) else self._other(side, rng)
                picture[:, y : y + side, x : x + side] = part
        beyond = side * (cells - 1)
        padding = [column, row, beyond - column, beyond - row]
        image, objects, valid = (
            v2.functional.crop(whole, 0, 0, extent, extent)
            for whole in (
                tv_tensors.Image(picture),
                v2.functional.pad(bundle[1], padding, fill=0),
                v2.functional.pad(bundle[2], padding, fill=1),
            )
        )
        return image, objects, valid

    def _other(self, side: int, rng: np.random.Generator) -> Tensor:
        """A square of any image, which fills it."""
        rgb = self.images[self._choose_image(rng)].rgb
        everywhere = np.ones(rgb.shape[:2], dtype=np.bool_)
        height, width, top, left = self._place(everywhere, side, rng, fill=True)
        picture = torch.tensor(rgb).permute(2, 0, 1)
        scaled: Tensor = v2.functional.resize(picture, [height, width], antialias=True)
        return scaled[:, top : top + side, left : left + side]

    def _colour(self, bundle: _Bundle, rng: np.random.Generator) -> _Bundle:
        """Change the image's colours; the masks stay."""
        jitter = self.config.jitter
        if not jitter:
            return bundle
        steps: list[v2.Transform] = [
            v2.RandomApply([v2.ColorJitter(jitter, jitter, jitter, jitter / 6)], p=0.5),
            v2.RandomGrayscale(0.1),
            v2.RandomApply([v2.GaussianBlur(5, (0.1, 1.5))], p=0.1),
        ]
        # torchvision draws from torch's generator: seed it for this example, and give it back.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**63)))
            changed: _Bundle = v2.Compose(steps)(*bundle)
        return changed

    def _present(self, objects: Tensor, valid: Tensor) -> list[int]:
        """Indices of T objects that can be seen; the first ones again where there are fewer."""
        pixels = (objects & valid).sum((-2, -1)).tolist()
        if pixels[0] < _LEAST_PIXELS:
            raise DataError(
                f"Of the object, {pixels[0]} pixels are in the crop; {_LEAST_PIXELS} are needed."
            )
        seen = [i for i, count in enumerate(pixels) if count >= _LEAST_PIXELS]
        count = self.config.targets
        return (seen * count)[:count]


def count_masks(images: ImageSet) -> dict[str, int]:
    """Masks of each origin and kind, as far as the data set knows them without reading.

    Parameters
    ----------
    images
        The data set.

    Returns
    -------
    dict
        Such as ``{"voc instance": 3221}``; empty where the set has no index.
    """
    if not isinstance(images, _Listed):
        return {}
    counts = Counter(
        f"{entry.source} {entry.kind}" for i in range(len(images)) for entry in images.entries(i)
    )
    return dict(sorted(counts.items()))


def _image_weights(images: ImageSet, kinds: Mapping[str, float]) -> NDArray[np.float64]:
    if not isinstance(images, _Listed):
        return np.ones(len(images))
    totals = [
        # An image of twenty masks is not twenty times as good as one of one.
        sum(kinds.get(entry.kind, 0.0) for entry in images.entries(i)) ** 0.5
        for i in range(len(images))
    ]
    return np.array(totals, dtype=np.float64)


def _counted(item: ObjectMask) -> NDArray[np.bool_]:
    return np.ones_like(item.mask) if item.ignore is None else ~item.ignore


def _cut(bundle: _Bundle, height: int, width: int, top: int, left: int, side: int) -> _Bundle:
    """Scale to a size, and cut a square out; what is beyond the image is padding."""
    first_row, first_column = max(top, 0), max(left, 0)
    bottom, right = min(top + side, height), min(left + side, width)
    padding = [first_column - left, first_row - top, left + side - right, top + side - bottom]
    cut = []
    for part, fill in zip(_resize(bundle, height, width), (_GREY, 0, 0), strict=True):
        inside = v2.functional.crop(
            part, first_row, first_column, bottom - first_row, right - first_column
        )
        cut.append(v2.functional.pad(inside, padding, fill=fill))
    return cut[0], cut[1], cut[2]


def _flip(bundle: _Bundle) -> _Bundle:
    picture, objects, valid = (v2.functional.horizontal_flip(part) for part in bundle)
    return picture, objects, valid


def _until_outside(clicks: Iterable[Click], size: tuple[int, int]) -> list[Click]:
    """The clicks before the first that is outside; those after it answered to what it did."""
    height, width = size
    return list(
        takewhile(
            lambda click: -0.5 <= click.x <= width - 0.5 and -0.5 <= click.y <= height - 0.5, clicks
        )
    )


def _resize(bundle: _Bundle, height: int, width: int) -> _Bundle:
    picture, *masks = bundle
    small = v2.functional.resize(picture, [height, width], antialias=True)
    # torchvision resizes masks by "nearest", which takes the top left of what a pixel covers and
    # so shifts them by up to half a pixel against the image.
    objects, valid = (
        tv_tensors.Mask(
            v2.functional.resize_image(
                mask.as_subclass(Tensor), [height, width], InterpolationMode.NEAREST_EXACT
            )
        )
        for mask in masks
    )
    return tv_tensors.Image(small), objects, valid


def _corner(first: float, last: float, length: int, side: int, rng: np.random.Generator) -> int:
    """Where a crop of so many pixels begins, so that it holds what it can of first..last."""
    if length <= side:  # all of the image fits
        low, high = float(length - side), 0.0
    else:
        # Where the object is larger than the crop, the two ends change places.
        low, high = sorted((max(0.0, last - side), min(first, length - side)))
    return round(rng.uniform(low, high))
