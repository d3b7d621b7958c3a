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


def choose_images(length: int, limit: int | None) -> list[int]:
    """Choose at most `limit` images.

    They are spread evenly, so that sorted categories all take part, and a smaller choice is part
    of a larger one (van der Corput's sequence): what was done with a small limit is not lost.

    Parameters
    ----------
    length
        How many images there are.
    limit
        How many to choose; None for all.

    Returns
    -------
    list of int
        Indices in ascending order.
    """
    bits = max(length - 1, 1).bit_length()
    # The bits of 0, 1, 2, ... in reverse order are fractions that fill [0, 1) evenly.
    order = (int(f"{k:0{bits}b}"[::-1], 2) for k in range(1 << bits))
    return sorted([index for index in order if index < length][:limit])


def some_images(images: ImageSet, limit: int) -> Iterator[AnnotatedImage]:
    """Read images as `choose_images` chooses them; those that cannot be used are left out.

    Parameters
    ----------
    images
        The data set.
    limit
        At most so many are read.
    """
    for index in choose_images(len(images), limit):
        try:
            image = images[index]
        except DataError:
            continue
        yield image
