"""Which images a fine-tuned model is for: those that are like what it learnt from.

A lab's images teach a model something about the lab's images. On others it had better stay as it
came, and it can: the frozen encoder, which is asked anyway, says of an image what it is like, and
whichever of two sets of images holds the nearest one decides which of two sets of weights answers
(after Expert Gate; Aljundi, Chakravarty and Tuytelaars, CVPR 2017).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812


def describe_image(features: Sequence[Tensor]) -> Tensor:
    """What an image is like: mean and standard deviation of every channel of an encoder.

    Parameters
    ----------
    features
        Levels of one image, (1, C, h, w) each, see `Encoder.forward`.

    Returns
    -------
    Tensor
        float32 (D,) of unit length on the CPU; D is twice the number of channels.
    """
    parts: list[Tensor] = []
    for level in features:
        cells = level[0].float().flatten(1)
        parts += [cells.mean(1), cells.std(1, correction=0)]
    return F.normalize(torch.cat(parts), dim=0).cpu()


@dataclass(frozen=True, kw_only=True, eq=False)
class Scope:
    """Images that a model is for, and images that it is not for.

    Parameters
    ----------
    own, others
        float32 (N, D) and (K, D), rows as `describe_image` gives them; at least one of each.
    """

    own: Tensor
    others: Tensor

    def covers(self, described: Tensor) -> bool:
        """Whether an image is more like one of the own than like any of the others.

        Parameters
        ----------
        described
            (D,), from `describe_image`.
        """
        return bool((self.own @ described).max() > (self.others @ described).max())
