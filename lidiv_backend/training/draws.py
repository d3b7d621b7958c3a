"""Training examples: an image is drawn, cut, turned and coloured, with some of its objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypedDict, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from lidiv_backend.errors import DataError
from lidiv_backend.records import AnnotatedImage, ImageSet, ObjectMask
from lidiv_backend.training.config import TrainingConfig

#: An object counts in a crop if so many of its pixels are there.
_LEAST_PIXELS = 40
#: Padding beside an image that does not fill the crop.
_GREY = 124


class Draw(TypedDict):
    """One image with T objects.

    ``rgb`` is uint8 (3, H, W), ``masks`` is bool (T, H, W), ``valid`` is bool (T, H, W): pixels
    that count.
    """

    rgb: Tensor
    masks: Tensor
    valid: Tensor


@runtime_checkable
class _Entry(Protocol):
    kind: str


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
    """

    def __init__(
        self, images: ImageSet, config: TrainingConfig, *, length: int, augment: bool = True
    ) -> None:
        self.images = images
        self.config = config
        self.length = length
        self.augment = augment
        self._cumulative = np.cumsum(_image_weights(images, config.kinds))
        if self._cumulative[-1] <= 0:
            raise DataError(
                f"The data set {images.name} has no mask of the kinds {', '.join(config.kinds)}.",
                remedy="Name other kinds, or another data set.",
            )

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Draw:
        rng = np.random.default_rng([self.config.seed, index])
        for _ in range(20):
            where = rng.random() * self._cumulative[-1]
            try:
                return self._draw(self.images[int(np.searchsorted(self._cumulative, where))], rng)
            except DataError:
                # A record that cannot be used: another one takes its place.
                continue
        raise DataError(
            f"Twenty images of {self.images.name} in a row could not be used.",
            remedy="Look at the data set: `lidiv evaluate --data-sets ...` names what is wrong.",
        )

    def _draw(self, image: AnnotatedImage, rng: np.random.Generator) -> Draw:
        weights = np.array([self.config.kinds.get(item.kind, 0.0) for item in image.objects])
        if weights.sum() <= 0:
            raise DataError(f"{image.name} has no mask of the kinds that are asked for.")
        order = rng.choice(len(weights), len(weights), replace=False, p=_spread(weights))
        chosen = [image.objects[i] for i in order]
        masks = np.stack([item.mask for item in chosen])
        counted = np.stack([_counted(item) for item in chosen])
        if len(chosen) > 1 and rng.random() < self.config.merged:
            # Two objects that are meant together are one more reading of a click on either.
            masks[0] |= masks[1]
            counted[0] &= counted[1]
        rgb = torch.from_numpy(image.rgb.copy()).permute(2, 0, 1)
        bundle = (
            tv_tensors.Image(rgb),
            tv_tensors.Mask(torch.from_numpy(masks)),
            tv_tensors.Mask(torch.from_numpy(counted)),
        )
        if self.config.crop is not None:
            bundle = self._cut(bundle, masks[0], rng)
        picture, objects, valid = self._change(bundle, rng)
        keep = self._present(objects, valid)
        return {
            "rgb": picture.as_subclass(Tensor),
            "masks": objects[keep].as_subclass(Tensor),
            "valid": valid[keep].as_subclass(Tensor),
        }

    def _cut(
        self,
        bundle: tuple[tv_tensors.Image, tv_tensors.Mask, tv_tensors.Mask],
        target: NDArray[np.bool_],
        rng: np.random.Generator,
    ) -> tuple[tv_tensors.Image, tv_tensors.Mask, tv_tensors.Mask]:
        """Scale, and cut a square in which most of the target lies."""
        side = self.config.crop
        assert side is not None  # noqa: S101
        rows, columns = np.flatnonzero(target.any(1)), np.flatnonzero(target.any(0))
        low, high = np.log(self.config.zoom)
        factor = float(np.exp(rng.uniform(low, high)))
        extent = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
        if extent * factor > side and rng.random() < 0.8:
            factor = max(side / extent * rng.uniform(0.7, 1.0), self.config.zoom[0] * 0.5)
        height, width = (max(8, round(length * factor)) for length in target.shape)
        tops = _corner(rows[0] * factor, (rows[-1] + 1) * factor, height, side, rng)
        lefts = _corner(columns[0] * factor, (columns[-1] + 1) * factor, width, side, rng)
        picture, objects, valid = (
            v2.functional.resize(part, [height, width], antialias=True) for part in bundle
        )
        top, left = max(tops, 0), max(lefts, 0)
        bottom, right = min(tops + side, height), min(lefts + side, width)
        padding = [left - lefts, top - tops, lefts + side - right, tops + side - bottom]
        cut = []
        for part, fill in ((picture, _GREY), (objects, 0), (valid, 0)):
            inside = v2.functional.crop(part, top, left, bottom - top, right - left)
            cut.append(v2.functional.pad(inside, padding, fill=fill))
        return cut[0], cut[1], cut[2]

    def _change(
        self,
        bundle: tuple[tv_tensors.Image, tv_tensors.Mask, tv_tensors.Mask],
        rng: np.random.Generator,
    ) -> tuple[tv_tensors.Image, tv_tensors.Mask, tv_tensors.Mask]:
        """Mirror and colour, image and masks alike."""
        if not self.augment:
            return bundle
        jitter = self.config.jitter
        steps: list[v2.Transform] = [v2.RandomHorizontalFlip(0.5)]
        if jitter:
            steps += [
                v2.RandomApply([v2.ColorJitter(jitter, jitter, jitter, jitter / 6)], p=0.5),
                v2.RandomGrayscale(0.1),
                v2.RandomApply([v2.GaussianBlur(5, (0.1, 1.5))], p=0.1),
            ]
        # torchvision draws from torch's generator: seed it for this example, and give it back.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**63)))
            changed: tuple[tv_tensors.Image, tv_tensors.Mask, tv_tensors.Mask]
            changed = v2.Compose(steps)(*bundle)
        return changed

    def _present(self, objects: Tensor, valid: Tensor) -> list[int]:
        """Indices of T objects that can be seen; the first ones again where there are fewer."""
        pixels = (objects & valid).sum((-2, -1))
        seen = [i for i, count in enumerate(pixels.tolist()) if count >= _LEAST_PIXELS]
        if not seen or pixels[0] < _LEAST_PIXELS:
            raise DataError("The object is not in the crop.")
        count = self.config.targets
        return (seen * count)[:count]


def _image_weights(images: ImageSet, kinds: Mapping[str, float]) -> NDArray[np.float64]:
    entries = getattr(images, "entries", None)
    if entries is None:
        return np.ones(len(images))
    totals = [
        # An image of twenty masks is not twenty times as good as one of one.
        sum(kinds.get(entry.kind, 0.0) for entry in _typed(entries(i))) ** 0.5
        for i in range(len(images))
    ]
    return np.array(totals, dtype=np.float64)


def _typed(entries: Sequence[_Entry]) -> Sequence[_Entry]:
    return entries


def _spread(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities without zeros, as drawing without replacement needs them."""
    weights = weights + 1e-9
    probabilities: NDArray[np.float64] = weights / weights.sum()
    return probabilities


def _counted(item: ObjectMask) -> NDArray[np.bool_]:
    return np.ones_like(item.mask) if item.ignore is None else ~item.ignore


def _corner(first: float, last: float, length: int, side: int, rng: np.random.Generator) -> int:
    """Where a crop of so many pixels begins, so that it holds what it can of first..last."""
    if length <= side:  # all of the image fits
        low, high = float(length - side), 0.0
    else:
        # Where the object is larger than the crop, the two ends change places.
        low, high = sorted((max(0.0, last - side), min(first, length - side)))
    return round(rng.uniform(low, high))
