"""Simulated clicks, for training and for evaluation.

This is the one place where clicks are drawn. Everything random takes a `numpy.random.Generator`,
so the same seed gives the same clicks. Simulated clicks lie on pixel centres.

Inside a region, the geodesic distance of Eq. 8 to the region's own boundary is the Euclidean
distance transform: the straight line to the nearest boundary pixel never leaves the region. The
edge of the image counts as boundary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from lidiv_backend.clicks import Click
from lidiv_backend.errors import DataError

Region = NDArray[np.bool_]


def boundary_distance(region: Region) -> NDArray[np.float32]:
    """Distance of each pixel of a region to the region's boundary.

    Parameters
    ----------
    region
        bool (H, W).

    Returns
    -------
    ndarray
        float32 (H, W), in pixels: Euclidean distance to the nearest pixel centre outside the
        region, where everything beyond the image's edge is outside; 0 outside the region.
    """
    distance = np.zeros(region.shape, dtype=np.float32)
    pixels = np.ascontiguousarray(region).view(np.uint8)
    left, top, width, height = cv2.boundingRect(pixels)
    if width == 0:
        return distance
    # Nothing outside the bounding box belongs to the region, so one pixel of padding around the
    # box stands for all of it, the image's edge included.
    box = (slice(top, top + height), slice(left, left + width))
    distance[box] = _exact_transform(np.pad(pixels[box], 1))[1:-1, 1:-1]
    return distance


def distance_to(region: Region) -> NDArray[np.float32]:
    """Distance of each pixel to a region.

    Parameters
    ----------
    region
        bool (H, W), with at least one pixel.

    Returns
    -------
    ndarray
        float32 (H, W), in pixels: Euclidean distance to the nearest pixel centre of the region, 0
        inside it. The image's edge does not count.
    """
    return _exact_transform(np.ascontiguousarray(~region).view(np.uint8))


def _exact_transform(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Distance of each pixel that is not 0 to the nearest that is, the nearest float32 to it."""
    transform = cv2.distanceTransform(pixels, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    # OpenCV's last bit depends on the number of its threads, which would break ties and shift
    # draws from one machine to the next. Squared distances are whole numbers, and rounding them
    # restores them for all distances below about 1,400 pixels.
    exact: NDArray[np.float64] = np.sqrt(np.rint(np.square(transform, dtype=np.float64)))
    return exact.astype(np.float32)


def sample_first_click(
    mask: Region, rng: np.random.Generator, ignore: Region | None = None
) -> Click:
    """Draw the first click on an object (Eq. 8).

    Parameters
    ----------
    mask
        bool (H, W), the object.
    rng
        Source of randomness.
    ignore
        bool (H, W), pixels that count neither way, or None.

    Returns
    -------
    Click
        A positive click; each pixel of the object is drawn in proportion to its distance to the
        object's boundary.

    Raises
    ------
    DataError
        If the mask has no pixel.
    """
    object_pixels = _without(mask, ignore)
    click = _sample_in_proportion(boundary_distance(object_pixels), object_pixels, rng)
    if click is None:
        raise _empty_mask()
    return click


def shared_click(mask: Region, clicks: Sequence[Click], rng: np.random.Generator) -> Click | None:
    """Choose a click that was made on another object and is on this one, too.

    Parameters
    ----------
    mask
        bool (H, W), the object, without pixels that count neither way.
    clicks
        Clicks on other objects of the same image.
    rng
        Source of randomness.

    Returns
    -------
    Click or None
        One of the positive clicks that are on the object; None if no one is.
    """
    on_it = [click for click in clicks if click.positive and mask[_pixel_of(click, mask.shape)]]
    return on_it[int(rng.integers(len(on_it)))] if on_it else None


def sample_next_click(
    truth: Region,
    prediction: Region,
    clicks: Iterable[Click],
    rng: np.random.Generator,
    ignore: Region | None = None,
) -> Click | None:
    """Draw a later click over the misclassified pixels (Eq. 8).

    Parameters
    ----------
    truth
        bool (H, W), the object.
    prediction
        bool (H, W), the mask that is shown.
    clicks
        The clicks so far; no pixel is clicked twice.
    rng
        Source of randomness.
    ignore
        bool (H, W), pixels that are never misclassified, or None.

    Returns
    -------
    Click or None
        A click, positive where the pixel belongs to the object; each misclassified pixel is drawn
        in proportion to its distance to the boundary of the set O' of all misclassified pixels.
        None if every one of them has been clicked, or none exists.
    """
    wrong = _without(truth ^ prediction, ignore)
    return _sample_in_proportion(_unclicked(boundary_distance(wrong), clicks), truth, rng)


def centre_click(
    truth: Region,
    prediction: Region,
    clicks: Iterable[Click],
    ignore: Region | None = None,
) -> Click | None:
    """Click at the centre of the larger error, as the later literature does.

    The missed and the wrongly added pixels are two regions; the click goes to the higher of their
    distance transforms' peaks. Nothing is random.

    Parameters
    ----------
    truth
        bool (H, W), the object.
    prediction
        bool (H, W), the mask that is shown; all False before the first click.
    clicks
        The clicks so far; no pixel is clicked twice.
    ignore
        bool (H, W), pixels that are never misclassified, or None.

    Returns
    -------
    Click or None
        The click, of equal peaks the first in row-major order; None if every misclassified pixel
        has been clicked, or none exists.
    """
    missed = _without(truth & ~prediction, ignore)
    added = _without(prediction & ~truth, ignore)
    # The regions are disjoint, so one map holds both transforms.
    distance = _unclicked(boundary_distance(missed) + boundary_distance(added), clicks)
    row, column = divmod(int(distance.argmax()), distance.shape[1])
    if distance[row, column] <= 0:
        return None
    return _click_at(row, column, truth)


def next_training_click(
    truth: Region,
    prediction: Region,
    clicks: Iterable[Click],
    rng: np.random.Generator,
    ignore: Region | None = None,
) -> Click | None:
    """Draw a click where the current mask is most wrong, for iterative training.

    Parameters
    ----------
    truth
        bool (H, W), the object.
    prediction
        bool (H, W), the mask that is shown.
    clicks
        The clicks so far; no pixel is clicked twice.
    rng
        Source of randomness.
    ignore
        bool (H, W), pixels that are never misclassified, or None.

    Returns
    -------
    Click or None
        A click drawn evenly from the inner part of the largest connected error (missed or wrongly
        added), where the distance to its boundary exceeds half of the largest; where all of that
        has been clicked, drawn by Eq. 8 over all errors. None if nothing is left to click.
    """
    clicks = list(clicks)
    missed = _largest_component(_without(truth & ~prediction, ignore))
    added = _largest_component(_without(prediction & ~truth, ignore))
    largest = missed if np.count_nonzero(missed) >= np.count_nonzero(added) else added
    distance = boundary_distance(largest)
    inner = (distance > distance.max() / 2).astype(np.float32)
    click = _sample_in_proportion(_unclicked(inner, clicks), truth, rng)
    return click or sample_next_click(truth, prediction, clicks, rng, ignore)


@dataclass(frozen=True, kw_only=True)
class DosProtocol:
    """How clicks are drawn for training after Xu et al. (CVPR 2016).

    Parameters
    ----------
    margin
        Least distance of a click to the object's boundary, in pixels.
    separation
        Least distance between two clicks of the same sign, in pixels.
    band
        Background clicks are drawn at most so many pixels away from the object.
    max_positives
        Most positive clicks; 1 to so many are drawn.
    max_background, max_others, max_around
        Most negative clicks of each strategy: anywhere in the band, on other objects, spread
        evenly around the boundary. 0 to so many are drawn, from one strategy at a time.
    single_click
        Probability of one positive click and nothing else, the case that every annotation begins
        with.
    """

    margin: float = 5.0
    separation: float = 10.0
    band: float = 40.0
    max_positives: int = 5
    max_background: int = 10
    max_others: int = 5
    max_around: int = 10
    single_click: float = 0.3


def dos_clicks(
    mask: Region,
    other_objects: Sequence[Region],
    rng: np.random.Generator,
    *,
    ignore: Region | None = None,
    protocol: DosProtocol | None = None,
) -> list[Click]:
    """Draw a set of clicks for training, after Xu et al.

    Parameters
    ----------
    mask
        bool (H, W), the object.
    other_objects
        bool (H, W) each, other objects of the image; they may overlap with `mask`.
    rng
        Source of randomness.
    ignore
        bool (H, W), pixels that are never clicked, or None.
    protocol
        The distances and numbers; those of the paper if not given.

    Returns
    -------
    list of Click
        At least one positive click, then further positive and then negative ones. In an object
        that is too thin for the margin the positive clicks lie in its inner half; a background
        that leaves no room for the margin and the separation gets fewer negative clicks, or none.

    Raises
    ------
    DataError
        If the mask has no pixel.
    """
    protocol = protocol or DosProtocol()
    object_pixels = _without(mask, ignore)
    inside = boundary_distance(object_pixels)
    deepest = float(inside.max(initial=0.0))
    if deepest <= 0:
        raise _empty_mask()
    roomy = inside >= protocol.margin if deepest >= protocol.margin else inside > deepest / 2
    single = rng.random() < protocol.single_click
    count = 1 if single else int(rng.integers(1, protocol.max_positives + 1))
    pixels = _spaced(roomy, count, protocol.separation, rng)
    clicks = [Click(x=float(x), y=float(y), positive=True) for y, x in pixels]
    if single:
        return clicks
    pixels = _dos_negatives(mask, other_objects, rng, ignore, protocol)
    return clicks + [Click(x=float(x), y=float(y), positive=False) for y, x in pixels]


def _dos_negatives(
    mask: Region,
    other_objects: Sequence[Region],
    rng: np.random.Generator,
    ignore: Region | None,
    protocol: DosProtocol,
) -> NDArray[np.intp]:
    """Pixels (N, 2) of row, column in the background, by one of the three strategies."""
    # Here the image's edge is no boundary: what counts is how far away the object is.
    away = distance_to(mask)
    background = _without(away >= protocol.margin, ignore)
    strategy = int(rng.integers(3))
    if strategy == 0:
        count = int(rng.integers(protocol.max_background + 1))
        return _spaced(background & (away <= protocol.band), count, protocol.separation, rng)
    if strategy == 1:
        count = int(rng.integers(protocol.max_others + 1))
        deep = np.zeros_like(mask)
        for other in other_objects:
            deep |= boundary_distance(other) >= protocol.margin
        return _spaced(background & deep, count, protocol.separation, rng)
    count = int(rng.integers(protocol.max_around + 1))
    ring = background & (away < 2 * protocol.margin)
    return _spread(ring, count, protocol.separation, rng)


def _spaced(
    allowed: Region, count: int, separation: float, rng: np.random.Generator
) -> NDArray[np.intp]:
    """Draw up to `count` pixels evenly from `allowed`, each pair at least `separation` apart."""
    left = allowed.copy()
    columns = left.shape[1]
    least = max(separation, 1.0)
    chosen: list[tuple[int, int]] = []
    while len(chosen) < count:
        places = np.flatnonzero(left)
        if not len(places):
            break
        row, column = divmod(int(places[rng.integers(len(places))]), columns)
        chosen.append((row, column))
        # What is too near lies in this square.
        rows, across = (
            np.arange(max(0, int(middle - least)), min(length, int(middle + least) + 1))
            for middle, length in ((row, left.shape[0]), (column, columns))
        )
        far = (rows[:, None] - row) ** 2 + (across - column) ** 2 >= least**2
        left[rows[0] : rows[-1] + 1, across[0] : across[-1] + 1] &= far
    return np.array(chosen, dtype=np.intp).reshape(-1, 2)


def _spread(
    allowed: Region, count: int, separation: float, rng: np.random.Generator
) -> NDArray[np.intp]:
    """Draw a pixel of `allowed`, then up to `count` in all, each farthest from those before."""
    pixels = np.argwhere(allowed)
    chosen: list[NDArray[np.intp]] = []
    nearest = np.full(len(pixels), np.inf)
    while len(chosen) < count and len(pixels):
        index = int(nearest.argmax()) if chosen else int(rng.integers(len(pixels)))
        if nearest[index] < max(separation, 1.0) ** 2:
            break
        chosen.append(pixels[index])
        nearest = np.minimum(nearest, ((pixels - pixels[index]) ** 2).sum(axis=1))
    return np.array(chosen, dtype=np.intp).reshape(-1, 2)


def _without(region: Region, ignore: Region | None) -> Region:
    return region if ignore is None else region & ~ignore


def _unclicked(weights: NDArray[np.float32], clicks: Iterable[Click]) -> NDArray[np.float32]:
    """Set the weights of the clicked pixels to 0, in place."""
    for click in clicks:
        weights[_pixel_of(click, weights.shape)] = 0
    return weights


def _pixel_of(click: Click, shape: tuple[int, ...]) -> tuple[int, int]:
    """Row and column of the clicked pixel."""
    row, column = int(np.floor(click.y + 0.5)), int(np.floor(click.x + 0.5))
    return min(max(row, 0), shape[0] - 1), min(max(column, 0), shape[1] - 1)


def _sample_in_proportion(
    weights: NDArray[np.float32], truth: Region, rng: np.random.Generator
) -> Click | None:
    """Draw a pixel in proportion to its weight; None where all weights are 0."""
    # Of booleans NumPy finds them ten times as fast.
    pixels = np.flatnonzero(weights != 0)
    if not len(pixels):
        return None
    cumulative = np.cumsum(weights.ravel()[pixels], dtype=np.float64)
    drawn = np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right")
    row, column = divmod(int(pixels[min(int(drawn), len(pixels) - 1)]), weights.shape[1])
    return _click_at(row, column, truth)


def _click_at(row: int, column: int, truth: Region) -> Click:
    return Click(x=float(column), y=float(row), positive=bool(truth[row, column]))


def _largest_component(region: Region) -> Region:
    """Largest 8-connected component, empty where the region is."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(
        np.ascontiguousarray(region).view(np.uint8), connectivity=8, ltype=cv2.CV_32S
    )
    if len(stats) < 2:
        return np.zeros_like(region)
    largest: Region = labels == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    return largest


def _empty_mask() -> DataError:
    return DataError("The mask has no pixel to click on.", remedy="Leave the object out.")
