"""A graph cut over the mask of another method, as the complete DOS system has it (Xu et al.)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lidiv_backend.clicks import Click
from lidiv_backend.evaluation.classical.base import (
    ReducedImage,
    SeedParameters,
    enlarge,
    make_seeds,
    reduce,
)
from lidiv_backend.evaluation.classical.graph_cut import (
    NO_IMPLICATIONS,
    CutParameters,
    Energy,
    contrast_pairs,
    minimise,
)
from lidiv_backend.evaluation.protocols import Method
from lidiv_backend.predictor import Proposal


@dataclass(frozen=True, slots=True, kw_only=True)
class RefinementParameters:
    """How far a mask is trusted.

    Parameters
    ----------
    softness
        Pixels of the reduced image over which the mask's outline is uncertain: the probability of
        object is the logistic function of the signed distance to the outline over this.
    doubt
        Probabilities stay so far from 0 and 1, so that a mask can be wrong far from its outline.
    """

    softness: float = 6.0
    doubt: float = 0.02


@dataclass(frozen=True, kw_only=True)
class _Embedded:
    own: Any
    reduced: ReducedImage


class Refined:
    """Another method, whose selected mask is snapped to edges by a graph cut.

    DOS takes the network's probabilities for the unary terms. A `Proposal` has a hard mask, so the
    distance to its outline stands for them.

    Parameters
    ----------
    method
        Gives the mask.
    longest_side
        The cut is made on the image reduced to this, pixels; None for its own size.
    seeds, cut, refinement
        Parameters.
    """

    def __init__(
        self,
        method: Method,
        *,
        longest_side: int | None = None,
        seeds: SeedParameters | None = None,
        cut: CutParameters | None = None,
        refinement: RefinementParameters | None = None,
    ) -> None:
        self.method = method
        self.longest_side = longest_side
        self.seeds = seeds or SeedParameters()
        self.cut = cut or CutParameters()
        self.refinement = refinement or RefinementParameters()

    @property
    def about(self) -> str:
        """All parameters of the cut."""
        return (
            f"longest_side={self.longest_side!r}, seeds={self.seeds!r}, cut={self.cut!r}, "
            f"refinement={self.refinement!r}"
        )

    @property
    def needs_both_signs(self) -> bool:
        """As the other method."""
        return bool(getattr(self.method, "needs_both_signs", False))

    @property
    def version(self) -> str:
        """That of the other method and the parameters of the cut."""
        return f"{getattr(self.method, 'version', type(self.method).__name__)}, cut {self.about}"

    def embed(self, rgb: NDArray[np.uint8]) -> _Embedded:
        """Embed for the other method, and reduce.

        Parameters
        ----------
        rgb
            uint8 (H, W, 3).
        """
        return _Embedded(own=self.method.embed(rgb), reduced=reduce(rgb, self.longest_side))

    def predict(
        self,
        image: _Embedded,
        clicks: Sequence[Click],
        previous: NDArray[np.bool_] | None = None,
    ) -> list[Proposal]:
        """Give the other method's selected mask, refined.

        Parameters
        ----------
        image
            From `embed`.
        clicks
            At least one.
        previous
            Handed to the other method.
        """
        best = self.method.predict(image.own, clicks, previous=previous)[0]
        reduced = image.reduced
        height, width = reduced.lab.shape[:2]
        small = cv2.resize(
            best.mask.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA
        )
        probability = self._probability(np.asarray(small > 0.5))
        seeds = make_seeds(reduced, clicks, self.seeds)
        pairs, weights = contrast_pairs(reduced.lab, self.cut.smoothness)
        mask = minimise(
            Energy(
                object_cost=-np.log(probability),
                background_cost=-np.log(1 - probability),
                pairs=pairs,
                weights=weights,
                certain_object=seeds.object,
                certain_background=seeds.background,
                implications=NO_IMPLICATIONS,
            )
        )
        return [Proposal(mask=enlarge(mask, reduced), score=best.score, head=best.head)]

    def _probability(self, mask: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Probability of object for each pixel, float64 (h, w)."""
        pixels = mask.astype(np.uint8)
        if mask.all() or not mask.any():
            signed = np.where(mask, np.inf, -np.inf)
        else:
            inside = cv2.distanceTransform(pixels, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
            outside = cv2.distanceTransform(1 - pixels, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
            # The outline runs between the pixels.
            signed = np.where(mask, inside - 0.5, 0.5 - outside).astype(np.float64)
        logistic = 1 / (1 + np.exp(np.clip(-signed / self.refinement.softness, -60, 60)))
        doubt = self.refinement.doubt
        return np.asarray(doubt + (1 - 2 * doubt) * logistic)
