"""Graph cut: the mask of least energy by maximum flow (Boykov and Jolly, ICCV 2001)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from ortools.graph.python.max_flow import SimpleMaxFlow

from lidiv_backend.evaluation.classical.base import (
    ClassicalSystem,
    ReducedImage,
    SeedParameters,
    Seeds,
)
from lidiv_backend.evaluation.classical.colour import ColourParameters, log_likelihoods

# Row and column offsets of half of the 8 neighbours; the other half is the same pairs again.
_NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))
# OR-Tools takes whole numbers.
_UNITS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class CutParameters:
    """Weights of the energy.

    Parameters
    ----------
    smoothness
        Of the pairwise terms against nats of colour likelihood; the role of 1 / lambda in Boykov
        and Jolly, and of gamma in GrabCut (Rother et al. 2004). Chosen on the training pool.
    """

    smoothness: float = 20.0


@dataclass(frozen=True, kw_only=True)
class Energy:
    """Energy of a mask x in {0, 1}: sum of unary and pairwise terms under hard constraints.

    Parameters
    ----------
    object_cost, background_cost
        float (h, w), cost of labelling a pixel object or background.
    pairs
        int (P, 2), flat indices of neighbours.
    weights
        float (P,), cost of labelling the two differently; not negative.
    certain_object, certain_background
        bool (h, w), pixels whose label is given.
    implications
        int (Q, 2), flat indices: where the first is object, the second is, too.
    """

    object_cost: NDArray[np.float64]
    background_cost: NDArray[np.float64]
    pairs: NDArray[np.int64]
    weights: NDArray[np.float64]
    certain_object: NDArray[np.bool_]
    certain_background: NDArray[np.bool_]
    implications: NDArray[np.int64]


NO_IMPLICATIONS = np.zeros((0, 2), dtype=np.int64)


def contrast_pairs(
    lab: NDArray[np.float32], smoothness: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Neighbours in the 8-neighbourhood and their contrast-sensitive weights.

    The weight is ``smoothness * exp(-|difference|^2 / (2 * mean |difference|^2)) / distance``, as
    in GrabCut (Rother et al. 2004).

    Parameters
    ----------
    lab
        float32 (h, w, 3).
    smoothness
        Weight where there is no contrast.

    Returns
    -------
    pairs : ndarray
        int64 (P, 2), flat indices.
    weights : ndarray
        float64 (P,).
    """
    height, width = lab.shape[:2]
    index = np.arange(height * width, dtype=np.int64).reshape(height, width)
    pairs, squared, distances = [], [], []
    for down, right in _NEIGHBOURS:
        first = (slice(0, height - down), slice(max(0, -right), width - max(0, right)))
        second = (slice(down, height), slice(max(0, right), width + min(0, right)))
        pairs.append(np.stack([index[first].ravel(), index[second].ravel()], axis=1))
        difference = (lab[first].astype(np.float64) - lab[second]).reshape(-1, 3)
        squared.append((difference**2).sum(axis=1))
        distances.append(np.full(len(squared[-1]), np.hypot(down, right)))
    contrast = np.concatenate(squared)
    mean = contrast.mean() if len(contrast) and contrast.any() else 1.0
    weights = smoothness * np.exp(-contrast / (2 * mean)) / np.concatenate(distances)
    return np.concatenate(pairs), weights


def minimise(energy: Energy) -> NDArray[np.bool_]:
    """Find the mask of least energy.

    Parameters
    ----------
    energy
        What to minimise. A hard constraint yields where it contradicts an implication.

    Returns
    -------
    ndarray
        bool (h, w), the smallest of the masks of least energy.
    """
    shape = energy.object_cost.shape
    pixels = energy.object_cost.size
    source, sink = pixels, pixels + 1
    # More than any pixel's neighbours weigh together, so that a certain label is never given up
    # for them (K in Boykov and Jolly).
    summed = np.zeros(pixels)
    np.add.at(summed, energy.pairs.ravel(), np.repeat(energy.weights, 2))
    unary = (energy.background_cost - energy.object_cost).ravel()
    certain = 1 + summed.max(initial=0.0) + np.abs(unary).max(initial=0.0)
    unary[energy.certain_object.ravel()] = certain
    unary[energy.certain_background.ravel()] = -certain
    terminal = np.rint(unary * _UNITS).astype(np.int64)
    neighbour = np.rint(energy.weights * _UNITS).astype(np.int64)
    # More than all terminal arcs together: no minimum cut goes through an implication.
    infinite = int(np.abs(terminal).sum()) + 1
    every = np.arange(pixels, dtype=np.int64)
    to_object, to_background = terminal > 0, terminal < 0
    tails = [
        np.full(np.count_nonzero(to_object), source),
        every[to_background],
        energy.pairs[:, 0],
        energy.pairs[:, 1],
        energy.implications[:, 0],
    ]
    heads = [
        every[to_object],
        np.full(np.count_nonzero(to_background), sink),
        energy.pairs[:, 1],
        energy.pairs[:, 0],
        energy.implications[:, 1],
    ]
    capacities = [
        terminal[to_object],
        -terminal[to_background],
        neighbour,
        neighbour,
        np.full(len(energy.implications), infinite),
    ]
    flow = SimpleMaxFlow()
    flow.add_arcs_with_capacity(
        np.concatenate(tails), np.concatenate(heads), np.concatenate(capacities)
    )
    status = flow.solve(source, sink)
    if status != flow.OPTIMAL:
        raise RuntimeError(f"maximum flow ended with status {status}")
    mask = np.zeros(pixels + 2, dtype=bool)
    mask[np.asarray(flow.get_source_side_min_cut(), dtype=np.int64)] = True
    return mask[:pixels].reshape(shape)


class GraphCut(ClassicalSystem):
    """Graph cut with colour histograms and contrast-sensitive edges (Boykov and Jolly 2001).

    Parameters
    ----------
    longest_side, seeds
        As in `ClassicalSystem`.
    colour
        Of the colour models.
    cut
        Of the energy.
    """

    def __init__(
        self,
        *,
        longest_side: int | None = None,
        seeds: SeedParameters | None = None,
        colour: ColourParameters | None = None,
        cut: CutParameters | None = None,
    ) -> None:
        super().__init__(longest_side=longest_side, seeds=seeds)
        self.colour = colour or ColourParameters()
        self.cut = cut or CutParameters()

    def segment(self, image: ReducedImage, seeds: Seeds) -> NDArray[np.bool_]:
        """Label the pixels by a minimum cut."""
        return minimise(self.energy(image, seeds))

    def energy(self, image: ReducedImage, seeds: Seeds) -> Energy:
        """Build the energy of all masks of an image."""
        on_object, on_background = log_likelihoods(image.lab, seeds, self.colour)
        pairs, weights = contrast_pairs(image.lab, self.cut.smoothness)
        return Energy(
            object_cost=-on_object,
            background_cost=-on_background,
            pairs=pairs,
            weights=weights,
            certain_object=seeds.object,
            certain_background=seeds.background,
            implications=self.implications(image, seeds),
        )

    def implications(self, image: ReducedImage, seeds: Seeds) -> NDArray[np.int64]:
        """Shape constraints; none for a plain graph cut."""
        return NO_IMPLICATIONS
