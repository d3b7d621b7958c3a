"""Answers in the form that Label Studio accepts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lidiv_backend.labelstudio.config import Target
from lidiv_backend.labelstudio.rle import encode_mask


@dataclass(frozen=True, kw_only=True)
class Region:
    """A mask on its way to Label Studio.

    Parameters
    ----------
    id
        Stays with the region when it is accepted and saved.
    target
        The tags that it is for.
    rle
        The mask's encoding, see `encode_mask`.
    height, width
        Size of the upright image, in pixels.
    score
        In [0, 1].
    text
        Shown in the region's details, and saved with it.
    """

    id: str
    target: Target
    rle: tuple[int, ...]
    height: int
    width: int
    score: float
    text: str

    @classmethod
    def of_mask(
        cls, mask: NDArray[np.bool_], *, id: str, target: Target, score: float, text: str
    ) -> Region:
        """Encode a mask of shape (H, W).

        Raises
        ------
        BadRegionError
            If the mask does not survive its encoding.
        """
        height, width = mask.shape
        rle = tuple(encode_mask(mask))
        return cls(
            id=id, target=target, rle=rle, height=height, width=width, score=score, text=text
        )

    def as_results(self) -> list[dict[str, Any]]:
        """Write the region's results; two with one id where labels have a tag of their own."""
        shared = {
            "id": self.id,
            "to_name": self.target.to_name,
            "original_width": self.width,
            "original_height": self.height,
            "image_rotation": 0,
            "origin": "prediction",
            "readonly": False,
            "score": self.score,
            "meta": {"text": [self.text]},
        }
        value: dict[str, Any] = {"format": "rle", "rle": self.rle}
        label = self.target.label
        if label is not None and self.target.labels is None:
            labelled = value | {"brushlabels": [label]}
            return [
                shared | {"from_name": self.target.brush, "type": "brushlabels", "value": labelled}
            ]
        brush = shared | {"from_name": self.target.brush, "type": "brush", "value": value}
        if label is None:
            return [brush]
        labelled = value | {"labels": [label]}
        return [
            brush,
            shared | {"from_name": self.target.labels, "type": "labels", "value": labelled},
        ]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One prediction: what Label Studio shows as a suggestion, or in a tab.

    Parameters
    ----------
    regions
        Possibly none: that is valid, and shows nothing.
    model_version
        Which model made it.
    """

    model_version: str
    regions: tuple[Region, ...] = ()

    @property
    def score(self) -> float:
        """Mean score of the regions; 0 where there are none."""
        if not self.regions:
            return 0.0
        return sum(region.score for region in self.regions) / len(self.regions)

    def as_json(self) -> dict[str, Any]:
        """Write the prediction."""
        results = [result for region in self.regions for result in region.as_results()]
        return {"result": results, "score": self.score, "model_version": self.model_version}
