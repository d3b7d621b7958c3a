"""What all readers share: from the pieces of a record to an `AnnotatedImage`."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from lidiv_backend.errors import DataError
from lidiv_backend.records import AnnotatedImage, ObjectMask


def assemble(
    name: str,
    rgb: NDArray[np.uint8],
    objects: Iterable[ObjectMask],
    problems: Iterable[str] = (),
) -> AnnotatedImage:
    """Put an image together with those of its masks that can be used.

    Parameters
    ----------
    name
        Name of the image.
    rgb
        uint8 (H, W, 3), upright.
    objects
        Its objects. One whose mask is empty or of another size is left out with the reason.
    problems
        What was left out before, each with its reason.

    Returns
    -------
    AnnotatedImage
        With at least one object.

    Raises
    ------
    DataError
        If no object can be used.
    """
    usable = []
    reasons = list(problems)
    for item in objects:
        reason = _defect(item, rgb.shape[:2])
        if reason:
            reasons.append(f"{item.name}: {reason}")
        else:
            usable.append(item)
    if not usable:
        why = "; ".join(reasons) or "none given"
        raise DataError(
            f"The image {name} has no mask that can be used ({why}).",
            remedy="Leave the image out or repair its masks.",
        )
    return AnnotatedImage(name=name, rgb=rgb, objects=tuple(usable), problems=tuple(reasons))


def _defect(item: ObjectMask, size: tuple[int, ...]) -> str:
    """Why a mask cannot be used; an empty string if it can."""
    for array in (item.mask, item.ignore):
        if array is not None and array.shape != size:
            return (
                f"the mask is {array.shape[1]} x {array.shape[0]} pixels, "
                f"the image {size[1]} x {size[0]}"
            )
    counted = item.mask if item.ignore is None else item.mask & ~item.ignore
    return "" if counted.any() else "the mask is empty"
