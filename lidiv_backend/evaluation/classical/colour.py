"""How likely a colour is on the object and on the background, learned from the seeds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from lidiv_backend.evaluation.classical.base import Seeds

# Lab as OpenCV gives it for float images.
_LOWEST = np.array([0.0, -128.0, -128.0])
_HIGHEST = np.array([100.0, 128.0, 128.0])


@dataclass(frozen=True, slots=True, kw_only=True)
class ColourParameters:
    """Smoothed histograms, as Boykov and Jolly (ICCV 2001) use them, here in Lab.

    Parameters
    ----------
    bins
        For each of L, a and b.
    smoothing
        Standard deviation of the Gaussian, in bins of L, a and b: seeds have few pixels.
    uniform
        Weight of a uniform density, so that colours that no seed shows decide nothing. Chosen on
        the training pool.
    """

    bins: int = 32
    smoothing: tuple[float, float, float] = (2.0, 1.0, 1.0)
    uniform: float = 0.3


def log_likelihoods(
    lab: NDArray[np.float32], seeds: Seeds, parameters: ColourParameters
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Log-density of each pixel's colour on the object and on the background.

    Parameters
    ----------
    lab
        float32 (h, w, 3).
    seeds
        What the colours are learned from.
    parameters
        Of the histograms.

    Returns
    -------
    tuple of ndarray
        float64 (h, w) each, in nats, relative to a uniform density over all bins.
    """
    scaled = (lab - _LOWEST) / (_HIGHEST - _LOWEST) * parameters.bins
    cells = np.clip(scaled.astype(np.intp), 0, parameters.bins - 1)
    flat = np.ravel_multi_index(tuple(np.moveaxis(cells, -1, 0)), (parameters.bins,) * 3)

    def model(sample: NDArray[np.bool_]) -> NDArray[np.float64]:
        counts = np.bincount(flat[sample], minlength=parameters.bins**3).astype(float)
        histogram = gaussian_filter(
            counts.reshape((parameters.bins,) * 3), parameters.smoothing, mode="constant"
        ).ravel()
        density = histogram / histogram.sum() * parameters.bins**3
        mixed: NDArray[np.float64] = np.log(
            (1 - parameters.uniform) * density + parameters.uniform
        )[flat]
        return mixed

    return model(seeds.object_sample), model(seeds.background_sample)


def object_probability(
    lab: NDArray[np.float32], seeds: Seeds, parameters: ColourParameters
) -> NDArray[np.float64]:
    """Probability that a pixel belongs to the object by its colour alone, both equally likely.

    Returns
    -------
    ndarray
        float64 (h, w) in (0, 1).
    """
    on_object, on_background = log_likelihoods(lab, seeds, parameters)
    return np.asarray(1 / (1 + np.exp(on_background - on_object)))
