"""Images with object masks, as every reader of training and evaluation data gives them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from lidiv_backend.errors import DataError

if TYPE_CHECKING:
    from lidiv_backend.clicks import Click


@dataclass(frozen=True, kw_only=True)
class ObjectMask:
    """One object of an image.

    Parameters
    ----------
    name
        Unique within the data set; stable between runs.
    mask
        bool (H, W), the size of the image.
    ignore
        bool (H, W), pixels that count neither way, or None.
    kind
        What the mask is: ``instance``, ``component``, ``part``, ``region`` or ``merged``.
    label
        Class name where the data set has one, else an empty string.
    clicks
        The clicks by which an annotator made it, in order; empty where that is not known.
    rejected
        Heads of f whose masks the annotator saw for these clicks, and did not take.
    """

    name: str
    mask: NDArray[np.bool_]
    ignore: NDArray[np.bool_] | None = None
    kind: str = "instance"
    label: str = ""
    clicks: tuple[Click, ...] = ()
    rejected: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class AnnotatedImage:
    """An image and the masks of its objects.

    Parameters
    ----------
    name
        Unique within the data set.
    rgb
        uint8 (H, W, 3), upright.
    objects
        The masks.
    problems
        Records of this image that were left out, each with its reason.
    """

    name: str
    rgb: NDArray[np.uint8]
    objects: tuple[ObjectMask, ...]
    problems: tuple[str, ...] = field(default=())


class ImageSet(Protocol):
    """A data set: images are read when they are asked for.

    ``data_set[i]`` raises `DataError` where image i cannot be used.
    """

    name: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> AnnotatedImage: ...


def some_images(images: ImageSet, limit: int) -> Iterator[AnnotatedImage]:
    """Read images that are spread evenly over a data set; those that cannot be used are left out.

    Parameters
    ----------
    images
        The data set.
    limit
        At most so many are read.
    """
    count = min(limit, len(images))
    for index in np.linspace(0, len(images) - 1, count).round().astype(int).tolist():
        try:
            image = images[index]
        except DataError:
            continue
        yield image
