"""From the numbers in a mask file to objects."""

from __future__ import annotations

from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from lidiv_backend.errors import DataError
from lidiv_backend.records import ObjectMask

# More distinct values than this are a photo, not a label map.
_MOST_OBJECTS = 5000


class MaskConvention(StrEnum):
    """What the numbers in a mask file mean.

    AUTO
        One of the others, chosen for each file by these rules, in this order: a lossy file (JPEG)
        or a single value beside 0 is BINARY; the values 0, 128 and 255, all present, are TRIMAP;
        8-bit values of which 255 covers more than half of what is not 0 are BINARY (a mask with
        soft edges); consecutive values from 1 and besides them 255 are VOID; all else is LABELS.
    BINARY
        One object: whatever exceeds half of the largest value.
    TRIMAP
        As in GrabCut: 0 background, 128 ignored, 255 the object.
    LABELS
        0 background, each other value one object.
    VOID
        As in Pascal VOC: 0 background, 255 ignored, each other value one object.
    """

    AUTO = "auto"
    BINARY = "binary"
    TRIMAP = "trimap"
    LABELS = "labels"
    VOID = "void"


def objects_from_labels(
    labels: NDArray[np.int32],
    *,
    name: str,
    convention: MaskConvention = MaskConvention.AUTO,
    lossy: bool = False,
    kind: str = "instance",
    label: str = "",
) -> list[ObjectMask]:
    """Split a mask or a label map into its objects.

    Parameters
    ----------
    labels
        int32 (H, W), not negative.
    name
        Name of the object; of several, each has ``:`` and its value behind it.
    convention
        What the numbers mean.
    lossy
        The file's compression changes values, so a range of grey is no label map.
    kind, label
        As in `ObjectMask`, for all objects.

    Returns
    -------
    list of ObjectMask
        One for each object in the order of their values; for BINARY and TRIMAP exactly one, which
        may be empty.

    Raises
    ------
    DataError
        If there are more values than a label map can have.
    """
    values = _values(labels)
    if convention is MaskConvention.AUTO:
        convention = _recognise(labels, values, lossy=lossy)
    if convention is MaskConvention.BINARY:
        # The first term keeps an all-black mask empty.
        mask = (labels > 0) & (2 * labels.astype(np.int64) > int(labels.max(initial=0)))
        return [ObjectMask(name=name, mask=mask, kind=kind, label=label)]
    if convention is MaskConvention.TRIMAP:
        unsure = (labels >= 64) & (labels < 192)
        return [
            ObjectMask(
                name=name,
                mask=labels >= 192,
                ignore=unsure if unsure.any() else None,
                kind=kind,
                label=label,
            )
        ]
    void = labels == 255 if convention is MaskConvention.VOID else None
    ignore = void if void is not None and void.any() else None
    wanted = [value for value in values if value > 0 and (void is None or value != 255)]
    if len(wanted) > _MOST_OBJECTS:
        raise DataError(
            f"The mask of {name} has {len(wanted)} different values, so it is no label map.",
            remedy="Save masks without lossy compression, with one value for each object.",
        )
    return [
        ObjectMask(
            name=f"{name}:{value}", mask=labels == value, ignore=ignore, kind=kind, label=label
        )
        for value in wanted
    ]


def _values(labels: NDArray[np.int32]) -> list[int]:
    """All values in ascending order."""
    largest = int(labels.max(initial=0))
    # Counting is ten times as fast as the sort in np.unique; packed colours are too large for it.
    present = (
        np.flatnonzero(np.bincount(labels.ravel())) if largest < 1 << 16 else np.unique(labels)
    )
    return [int(value) for value in present]


def _recognise(labels: NDArray[np.int32], values: list[int], *, lossy: bool) -> MaskConvention:
    """Apply the rules of `MaskConvention.AUTO`."""
    inside = [value for value in values if value > 0]
    if lossy or len(inside) <= 1:
        return MaskConvention.BINARY
    if values == [0, 128, 255]:
        return MaskConvention.TRIMAP
    if inside[-1] == 255:
        full = int(np.count_nonzero(labels == 255))
        if 2 * full > int(np.count_nonzero(labels)):
            return MaskConvention.BINARY
        if inside[-2] == len(inside) - 1 < 254:
            return MaskConvention.VOID
    return MaskConvention.LABELS
