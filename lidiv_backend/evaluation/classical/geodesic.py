"""Geodesic distances, and matting by them (Bai and Sapiro, IJCV 2009)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from skimage.graph import MCP_Geometric

from lidiv_backend.evaluation.classical.base import (
    ClassicalSystem,
    ReducedImage,
    SeedParameters,
    Seeds,
)
from lidiv_backend.evaluation.classical.colour import ColourParameters, object_probability


@dataclass(frozen=True, kw_only=True)
class Geodesics:
    """Shortest paths to the nearest start.

    Parameters
    ----------
    distance
        float64 (h, w), length of the path.
    parent
        int64 (h, w), flat index of the next pixel on the path to the start; a start's is its own.
    """

    distance: NDArray[np.float64]
    parent: NDArray[np.int64]


def shortest_paths(cost: NDArray[np.float64], starts: NDArray[np.intp]) -> Geodesics:
    """Find shortest paths on the 8-neighbourhood.

    A step between neighbours is as long as their distance (1 or the root of 2) times the mean of
    their costs.

    Parameters
    ----------
    cost
        float64 (h, w), for each unit of length; positive.
    starts
        int (N, 2), rows and columns.
    """
    paths = MCP_Geometric(cost)
    distance, trace = paths.find_costs(starts.tolist())
    # For a start the trace is -1, and no offset is to be taken.
    offsets = np.vstack([np.asarray(paths.offsets), np.zeros((1, 2), dtype=int)])
    rows, columns = np.indices(cost.shape)
    from_rows = rows - offsets[trace, 0]
    from_columns = columns - offsets[trace, 1]
    parent = np.ravel_multi_index((from_rows, from_columns), cost.shape).astype(np.int64)
    return Geodesics(distance=np.asarray(distance, np.float64), parent=parent)


def gradient_magnitude(channels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Length of the gradient of a (h, w, C) image over all channels, (h, w)."""
    total = np.zeros(channels.shape[:2])
    for axis in (0, 1):
        if channels.shape[axis] > 1:
            total += (np.gradient(channels, axis=axis) ** 2).sum(axis=-1)
    return np.sqrt(total)


@dataclass(frozen=True, slots=True, kw_only=True)
class MattingParameters:
    """Of geodesic matting.

    Parameters
    ----------
    length
        Cost of a pixel's length where the colour probability does not change, so that distances
        grow in flat regions, too. Bai and Sapiro leave it out; ties then decide.
    """

    length: float = 1e-3


class GeodesicMatting(ClassicalSystem):
    """Each pixel goes to the seeds that are nearer, where changes of colour are what is long.

    The distance is measured on the probability of object by colour, as Bai and Sapiro do. The
    matte is cut at one half, which is where the two distances are equal.

    Parameters
    ----------
    longest_side, seeds
        As in `ClassicalSystem`.
    colour
        Of the colour models.
    matting
        Of the distance.
    """

    def __init__(
        self,
        *,
        longest_side: int | None = None,
        seeds: SeedParameters | None = None,
        colour: ColourParameters | None = None,
        matting: MattingParameters | None = None,
    ) -> None:
        super().__init__(longest_side=longest_side, seeds=seeds)
        self.colour = colour or ColourParameters()
        self.matting = matting or MattingParameters()

    def segment(self, image: ReducedImage, seeds: Seeds) -> NDArray[np.bool_]:
        """Label the pixels by the nearer seeds."""
        probability = object_probability(image.lab, seeds, self.colour)
        cost = gradient_magnitude(probability[..., np.newaxis]) + self.matting.length
        to_object = shortest_paths(cost, np.argwhere(seeds.object)).distance
        to_background = shortest_paths(cost, np.argwhere(seeds.background)).distance
        return np.asarray(to_object < to_background)
