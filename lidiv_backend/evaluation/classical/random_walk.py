"""Random walks from seeds (Grady, PAMI 2006)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from skimage.segmentation import random_walker

from lidiv_backend.evaluation.classical.base import (
    ClassicalSystem,
    ReducedImage,
    SeedParameters,
    Seeds,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WalkParameters:
    """Of the random walker.

    Parameters
    ----------
    beta
        How hard it is to walk across an edge: weights are exp(-beta |difference|^2), differences
        scaled by scikit-image with the image's standard deviation. Chosen on the training pool;
        scikit-image's default, 130, hardly sees edges in photographs.
    tolerance
        Of the conjugate gradients; scikit-image's default.
    """

    beta: float = 5000.0
    tolerance: float = 1e-3


class RandomWalk(ClassicalSystem):
    """Each pixel goes to the seeds that a random walker, shy of edges, reaches first.

    Parameters
    ----------
    longest_side, seeds
        As in `ClassicalSystem`.
    walk
        Of the walker.
    """

    def __init__(
        self,
        *,
        longest_side: int | None = None,
        seeds: SeedParameters | None = None,
        walk: WalkParameters | None = None,
    ) -> None:
        super().__init__(longest_side=longest_side, seeds=seeds)
        self.walk = walk or WalkParameters()

    def segment(self, image: ReducedImage, seeds: Seeds) -> NDArray[np.bool_]:
        """Label the pixels by the likelier first arrival."""
        return np.asarray(self.probability(image, seeds) > 0.5)

    def probability(self, image: ReducedImage, seeds: Seeds) -> NDArray[np.float64]:
        """Probability that a walker from each pixel reaches the object first, (h, w)."""
        labels = np.zeros(image.lab.shape[:2], dtype=np.int32)
        labels[seeds.object] = 1
        labels[seeds.background] = 2
        reached = random_walker(
            # Lightness in [0, 1]: how beta acts depends on the unit.
            image.lab.astype(np.float64) / 100,
            labels,
            beta=self.walk.beta,
            mode="cg_mg",
            tol=self.walk.tolerance,
            # Its warning is about exact probabilities; here one half is all that counts.
            prob_tol=1.0,
            return_full_prob=True,
            channel_axis=-1,
        )
        return np.asarray(reached[0], np.float64)
