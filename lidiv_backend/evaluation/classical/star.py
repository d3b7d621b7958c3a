"""Star convexity: graph cuts whose masks are star-shaped around the positive clicks.

Gulshan et al. (CVPR 2010): every pixel belongs to the nearest positive click, and wherever it is
object, so is the path from it to that click. The paths are straight lines (Euclidean) or shortest
paths that avoid edges (geodesic).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from lidiv_backend.evaluation.classical.base import ReducedImage, SeedParameters, Seeds
from lidiv_backend.evaluation.classical.colour import ColourParameters
from lidiv_backend.evaluation.classical.geodesic import gradient_magnitude, shortest_paths
from lidiv_backend.evaluation.classical.graph_cut import CutParameters, GraphCut


def line_implications(centres: NDArray[np.intp], shape: tuple[int, int]) -> NDArray[np.int64]:
    """Constraints that make a mask star-convex along straight lines.

    A pixel implies those on its own line at 1, 2, 4, 8 ... steps from it. Its next neighbour alone
    would not do: chains of neighbours turn to the eight directions of the grid and leave the line.

    Parameters
    ----------
    centres
        int (N, 2), rows and columns; each pixel's line goes to the nearest.
    shape
        Of the mask.

    Returns
    -------
    ndarray
        int64 (Q, 2), flat indices: where the first is object, the second is, too.
    """
    elsewhere = np.ones(shape, dtype=bool)
    elsewhere[tuple(centres.T)] = False
    nearest = distance_transform_edt(elsewhere, return_distances=False, return_indices=True)
    places = np.indices(shape)
    away = nearest - places
    # As many steps as Bresenham's line has.
    length = np.abs(away).max(axis=0)
    index = np.arange(shape[0] * shape[1], dtype=np.int64).reshape(shape)
    found = []
    step = 1
    while (far := length >= step).any():
        towards = np.rint(places[:, far] + away[:, far] * (step / length[far])).astype(np.int64)
        found.append(np.stack([index[far], index[towards[0], towards[1]]], axis=1))
        step *= 2
    return np.concatenate(found) if found else np.zeros((0, 2), dtype=np.int64)


class EuclideanStarConvexity(GraphCut):
    """Graph cut with masks that are star-convex along straight lines (ESC)."""

    def implications(self, image: ReducedImage, seeds: Seeds) -> NDArray[np.int64]:
        """Lines to the nearest positive click."""
        height, width = image.lab.shape[:2]
        return line_implications(seeds.positive, (height, width))


@dataclass(frozen=True, slots=True, kw_only=True)
class GeodesicParameters:
    """Of the distance along which geodesic stars grow.

    Parameters
    ----------
    contrast
        Share of the image's gradient in the length of a path, in [0, 1]; the rest is Euclidean
        (gamma of Gulshan et al.). Gradients are relative to their mean over the image. Chosen on
        the training pool.
    """

    contrast: float = 0.3


class GeodesicStarConvexity(GraphCut):
    """Graph cut with masks that are star-convex along shortest paths (GSC).

    Parameters
    ----------
    longest_side, seeds, colour, cut
        As in `GraphCut`.
    geodesic
        Of the distance.
    """

    def __init__(
        self,
        *,
        longest_side: int | None = None,
        seeds: SeedParameters | None = None,
        colour: ColourParameters | None = None,
        cut: CutParameters | None = None,
        geodesic: GeodesicParameters | None = None,
    ) -> None:
        super().__init__(longest_side=longest_side, seeds=seeds, colour=colour, cut=cut)
        self.geodesic = geodesic or GeodesicParameters()

    def path_cost(self, image: ReducedImage) -> NDArray[np.float64]:
        """Cost of a unit of length at each pixel, float64 (h, w)."""
        gradient = gradient_magnitude(image.lab.astype(np.float64))
        relative = gradient / (gradient.mean() or 1.0)
        share = self.geodesic.contrast
        return np.sqrt((1 - share) + share * relative**2) + 1e-6

    def implications(self, image: ReducedImage, seeds: Seeds) -> NDArray[np.int64]:
        """Every pixel implies the next one on its path to the nearest positive click."""
        parent = shortest_paths(self.path_cost(image), seeds.positive).parent.ravel()
        index = np.arange(len(parent), dtype=np.int64)
        moves = parent != index
        return np.stack([index[moves], parent[moves]], axis=1)
