"""What a simulated lab annotates, and what it never sees: images with masks, split by image."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from lidiv_backend.errors import DataError, LidivError
from lidiv_backend.records import AnnotatedImage, ImageSet, ObjectMask

#: Smaller objects, in pixels, are left out: they are noise in most label maps.
LEAST_PIXELS = 20


@dataclass(frozen=True, kw_only=True)
class Material:
    """The images of a lab.

    Parameters
    ----------
    annotated
        Those that its annotators see, with the objects that they segment.
    held_back
        Those that only the measurement sees.
    """

    annotated: ChosenImages
    held_back: ChosenImages


class ChosenImages:
    """Some images of a data set, with some of their objects; an `ImageSet`.

    Parameters
    ----------
    name
        Of the set.
    base
        The data set.
    indices
        Which of its images.
    objects
        Of each image at most so many objects, always the same ones.
    """

    def __init__(self, name: str, base: ImageSet, indices: Sequence[int], *, objects: int) -> None:
        self.name = name
        self._base = base
        self._indices = tuple(indices)
        self._objects = objects

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> AnnotatedImage:
        image = self._base[self._indices[index]]
        return replace(image, objects=choose_objects(image, self._objects))

    def file_name(self, index: int) -> str:
        """Name the file of an image by its place in the data set, which has no odd characters."""
        return f"{self._indices[index]:06d}.png"


def choose_objects(image: AnnotatedImage, limit: int) -> tuple[ObjectMask, ...]:
    """Choose objects of an image by a hash of their names, so that the choice is always the same.

    Parameters
    ----------
    image
        The image.
    limit
        At most so many.
    """
    large = [item for item in image.objects if int(item.mask.sum()) >= LEAST_PIXELS]
    return tuple(
        sorted(large, key=lambda item: hashlib.sha256(item.name.encode()).hexdigest())[:limit]
    )


def divide(
    images: ImageSet, *, annotated: int, held_back: int, objects: int, measured: int, seed: int
) -> Material:
    """Divide a data set by image.

    Parameters
    ----------
    images
        The data set.
    annotated, held_back
        Numbers of images.
    objects, measured
        Objects of an image that are annotated, and that are measured.
    seed
        Of the division.

    Raises
    ------
    DataError
        If there are too few images.
    """
    order = np.random.default_rng(seed).permutation(len(images)).tolist()
    usable: list[int] = []
    for index in order:
        if len(usable) == annotated + held_back:
            break
        try:
            if choose_objects(images[index], 1):
                usable.append(index)
        except LidivError:
            continue
    if len(usable) <= annotated:
        raise DataError(
            f"{images.name} has {len(usable)} usable images; {annotated} are annotated, and none "
            "would be left to measure.",
            remedy="Give more images, or a smaller --images.",
        )
    return Material(
        annotated=ChosenImages(images.name, images, usable[:annotated], objects=objects),
        held_back=ChosenImages(
            f"{images.name}, held back", images, usable[annotated:], objects=measured
        ),
    )


def write_images(images: ChosenImages, folder: Path) -> None:
    """Put the images of a lab into a folder, as PNG; those that are there are left alone.

    Parameters
    ----------
    images
        Which.
    folder
        Made if missing.

    Raises
    ------
    DataError
        If a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(len(images)):
        target = folder / images.file_name(index)
        if target.exists():
            continue
        done, encoded = cv2.imencode(".png", images[index].rgb[..., ::-1])
        if not done:
            raise DataError(f"{target} cannot be written.")
        aside = target.with_suffix(".part")
        aside.write_bytes(encoded.tobytes())
        aside.rename(target)
