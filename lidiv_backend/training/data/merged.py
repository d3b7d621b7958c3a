"""Merged neighbours: masks made on purpose so that one click can mean more than one thing."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from lidiv_backend.records import AnnotatedImage, ImageSet, ObjectMask
from lidiv_backend.training.simulation import distance_to

# An object that lies in another by more than this part of itself is nested: merging adds nothing.
_NESTED = 0.5


def with_merged(
    image: AnnotatedImage,
    rng: np.random.Generator,
    *,
    gap: float = 5.0,
    count: int = 1,
    largest_group: int = 3,
) -> AnnotatedImage:
    """Add unions of objects that touch or nearly touch.

    Parameters
    ----------
    image
        The image with its objects.
    rng
        Source of randomness.
    gap
        Objects at most so many pixels apart are neighbours.
    count
        Most masks to add.
    largest_group
        Most objects in one merged mask; each is a neighbour of another.

    Returns
    -------
    AnnotatedImage
        The image with up to `count` further objects of kind ``merged``, none of them twice. Their
        names are those of their parts, joined by ``+``.
    """
    neighbours = _neighbours(image.objects, gap=gap)
    starts = [index for index, others in enumerate(neighbours) if others]
    groups: dict[frozenset[int], ObjectMask] = {}
    # Groups are drawn anew when they repeat; a crowded image has many, a sparse one few.
    for _ in range(4 * count if starts else 0):
        if len(groups) == count:
            break
        wanted = int(rng.integers(2, largest_group + 1))
        group = {starts[rng.integers(len(starts))]}
        while len(group) < wanted:
            around = sorted(set().union(*(neighbours[index] for index in group)) - group)
            if not around:
                break
            group.add(around[rng.integers(len(around))])
        groups.setdefault(
            frozenset(group), _merge([image.objects[index] for index in sorted(group)])
        )
    return AnnotatedImage(
        name=image.name,
        rgb=image.rgb,
        objects=image.objects + tuple(groups.values()),
        problems=image.problems,
    )


class MergedSet:
    """A data set with merged neighbours added, the same in every run.

    Parameters
    ----------
    base
        The data set.
    seed
        Together with the image's index it decides what is merged.
    gap, count
        As for `with_merged`.
    """

    def __init__(self, base: ImageSet, *, seed: int, gap: float = 5.0, count: int = 1) -> None:
        self.base = base
        self.name = base.name
        self.seed = seed
        self.gap = gap
        self.count = count

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, index: int) -> AnnotatedImage:
        rng = np.random.default_rng([self.seed, index])
        return with_merged(self.base[index], rng, gap=self.gap, count=self.count)


def _neighbours(objects: tuple[ObjectMask, ...], *, gap: float) -> list[set[int]]:
    """For each object those within `gap` pixels that are neither nested in it nor around it."""
    boxes = [cv2.boundingRect(item.mask.view(np.uint8)) for item in objects]
    areas = [int(np.count_nonzero(item.mask)) for item in objects]
    found: list[set[int]] = [set() for _ in objects]
    margin = int(np.ceil(gap))
    for first, item in enumerate(objects):
        left, top, width, height = boxes[first]
        window = (
            slice(max(top - margin, 0), top + height + margin),
            slice(max(left - margin, 0), left + width + margin),
        )
        near: NDArray[np.bool_] | None = None
        for second in range(first + 1, len(objects)):
            if not _overlap(boxes[first], boxes[second], margin):
                continue
            if near is None:
                near = distance_to(item.mask[window]) <= gap
            other = objects[second].mask[window]
            shared = int(np.count_nonzero(item.mask[window] & other))
            if shared <= _NESTED * min(areas[first], areas[second]) and (near & other).any():
                found[first].add(second)
                found[second].add(first)
    return found


def _overlap(first: Sequence[int], second: Sequence[int], margin: int) -> bool:
    """Whether two boxes of left, top, width and height come within `margin` pixels."""
    return all(
        first[axis] - margin <= second[axis] + second[axis + 2]
        and second[axis] - margin <= first[axis] + first[axis + 2]
        for axis in (0, 1)
    )


def _merge(parts: list[ObjectMask]) -> ObjectMask:
    mask = np.logical_or.reduce([part.mask for part in parts])
    borders = [part.ignore for part in parts if part.ignore is not None]
    ignore = np.logical_or.reduce(borders) & ~mask if borders else None
    labels = {part.label for part in parts}
    return ObjectMask(
        name="+".join(part.name for part in parts),
        mask=mask,
        ignore=ignore,
        kind="merged",
        label=labels.pop() if len(labels) == 1 else "",
    )
