"""From an image to an embedding, from an embedding and clicks to ranked proposals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """One segmentation that the model offers.

    Parameters
    ----------
    mask
        bool (H, W), the size of the image.
    score
        What IoU the model expects of the mask, in [0, 1] (`default`), or g's softmax (`paper`).
    head
        Which of the M outputs of f it came from, from 0.
    """

    mask: NDArray[np.bool_]
    score: float
    head: int
