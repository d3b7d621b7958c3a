"""OpenCV's GrabCut (Rother et al. 2004), started from clicks."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from lidiv_backend.evaluation.classical.base import (
    ClassicalSystem,
    ReducedImage,
    SeedParameters,
    Seeds,
)
from lidiv_backend.evaluation.classical.colour import ColourParameters, object_probability


@dataclass(frozen=True, slots=True, kw_only=True)
class GrabCutParameters:
    """Of GrabCut.

    Parameters
    ----------
    iterations
        Of fitting colours and cutting.
    """

    iterations: int = 5


class GrabCut(ClassicalSystem):
    """Iterated graph cuts with Gaussian mixtures; where it starts is decided by colour.

    Parameters
    ----------
    longest_side, seeds
        As in `ClassicalSystem`.
    colour
        Of the models for the start.
    grabcut
        Of the iterations.
    """

    def __init__(
        self,
        *,
        longest_side: int | None = None,
        seeds: SeedParameters | None = None,
        colour: ColourParameters | None = None,
        grabcut: GrabCutParameters | None = None,
    ) -> None:
        super().__init__(longest_side=longest_side, seeds=seeds)
        self.colour = colour or ColourParameters()
        self.grabcut = grabcut or GrabCutParameters()

    def segment(self, image: ReducedImage, seeds: Seeds) -> NDArray[np.bool_]:
        """Label the pixels by iterated cuts."""
        probable = object_probability(image.lab, seeds, self.colour) > 0.5
        mask = np.where(probable, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
        mask[seeds.object] = cv2.GC_FGD
        mask[seeds.background] = cv2.GC_BGD
        background_model, object_model = np.zeros((1, 65)), np.zeros((1, 65))
        # The mixtures start from random clusters: the same clicks must give the same mask.
        cv2.setRNGSeed(0)
        cv2.grabCut(
            np.ascontiguousarray(image.rgb[..., ::-1]),
            mask,
            (0, 0, 1, 1),  # Not used: the mask says where to start.
            background_model,
            object_model,
            self.grabcut.iterations,
            cv2.GC_INIT_WITH_MASK,
        )
        return np.asarray((mask == cv2.GC_FGD) | (mask == cv2.GC_PR_FGD))
