"""What the classical systems share: a reduced image, seeds from clicks, the mask at full size."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from lidiv_backend.clicks import Click, validate_clicks
from lidiv_backend.errors import BadClickError
from lidiv_backend.predictor import Proposal


@dataclass(frozen=True, kw_only=True)
class ReducedImage:
    """An image at the size at which a classical system works.

    Parameters
    ----------
    lab
        float32 (h, w, 3), CIE Lab: L in [0, 100], a and b about [-127, 127].
    rgb
        uint8 (h, w, 3).
    height, width
        Of the original, pixels.
    """

    lab: NDArray[np.float32]
    rgb: NDArray[np.uint8]
    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class Seeds:
    """Clicks on the reduced image.

    Parameters
    ----------
    positive, negative
        int (N, 2), row and column of each click.
    object, background
        bool (h, w), what is certain: a small disk around each click. A pixel in two disks belongs
        to the nearer click.
    object_sample, background_sample
        bool (h, w), larger disks, from which colours are learned.
    """

    positive: NDArray[np.intp]
    negative: NDArray[np.intp]
    object: NDArray[np.bool_]
    background: NDArray[np.bool_]
    object_sample: NDArray[np.bool_]
    background_sample: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedParameters:
    """How large a click is.

    Parameters
    ----------
    radius
        Of what is certain, pixels of the reduced image.
    sample_radius
        Of what colours are learned from. The literature draws strokes; a click stands for one.
        Chosen on the training pool.
    """

    radius: float = 2.0
    sample_radius: float = 9.0


class ClassicalSystem(ABC):
    """A system that labels the pixels of a reduced image from seeds of both signs.

    Parameters
    ----------
    longest_side
        The image is reduced to this, pixels; None for its own size.
    seeds
        How large a click is.
    """

    #: No result before a positive and a negative click, as in the paper.
    needs_both_signs: ClassVar[bool] = True

    def __init__(
        self, *, longest_side: int | None = None, seeds: SeedParameters | None = None
    ) -> None:
        self.longest_side = longest_side
        self.seeds = seeds or SeedParameters()

    @property
    def about(self) -> str:
        """All parameters."""
        return ", ".join(f"{name}={value!r}" for name, value in sorted(vars(self).items()))

    @property
    def version(self) -> str:
        """Hash of all parameters, so that results of other parameters are not mixed with these."""
        digest = hashlib.sha256(self.about.encode()).hexdigest()
        return f"{type(self).__name__}-{digest[:8]}"

    def embed(self, rgb: NDArray[np.uint8]) -> ReducedImage:
        """Reduce an image.

        Parameters
        ----------
        rgb
            uint8 (H, W, 3).
        """
        return reduce(rgb, self.longest_side)

    def predict(
        self,
        image: ReducedImage,
        clicks: Sequence[Click],
        previous: NDArray[np.bool_] | None = None,
    ) -> list[Proposal]:
        """Give the one proposal that such a system has.

        Parameters
        ----------
        image
            From `embed`.
        clicks
            At least one of each sign.
        previous
            Not used: these systems depend on the clicks alone.

        Raises
        ------
        BadClickError
            If there is no positive or no negative click, or one lies outside the image.
        """
        if len({click.positive for click in clicks}) < 2:
            raise BadClickError(
                "This system needs a positive and a negative click.", remedy="Click both."
            )
        mask = self.segment(image, make_seeds(image, clicks, self.seeds))
        return [Proposal(mask=enlarge(mask, image), score=1.0, head=0)]

    @abstractmethod
    def segment(self, image: ReducedImage, seeds: Seeds) -> NDArray[np.bool_]:
        """Label the pixels.

        Returns
        -------
        ndarray
            bool (h, w), the size of the reduced image.
        """


def reduce(rgb: NDArray[np.uint8], longest_side: int | None) -> ReducedImage:
    """Reduce an image so that its longest side has so many pixels, if it has more.

    Parameters
    ----------
    rgb
        uint8 (H, W, 3).
    longest_side
        Pixels; None for the image's own size.
    """
    height, width = rgb.shape[:2]
    factor = min(1.0, (longest_side or max(height, width)) / max(height, width))
    reduced = rgb
    if factor < 1:
        size = (max(1, round(width * factor)), max(1, round(height * factor)))
        reduced = np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8)
    lab = cv2.cvtColor(reduced.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    return ReducedImage(lab=np.asarray(lab, np.float32), rgb=reduced, height=height, width=width)


def enlarge(mask: NDArray[np.bool_], image: ReducedImage) -> NDArray[np.bool_]:
    """Bring a bool (h, w) mask of the reduced image to the original's size, bool (H, W)."""
    if mask.shape == (image.height, image.width):
        return mask
    # Bilinear in between, so that the outline of the enlarged mask has no stairs.
    size = (image.width, image.height)
    enlarged = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
    return np.asarray(enlarged > 0.5)


def make_seeds(image: ReducedImage, clicks: Sequence[Click], parameters: SeedParameters) -> Seeds:
    """Turn clicks into seeds on the reduced image.

    Raises
    ------
    BadClickError
        If a click is not finite or lies outside the image.
    """
    validate_clicks(clicks, height=image.height, width=image.width)
    height, width = image.lab.shape[:2]
    scale = np.array([height / image.height, width / image.width])
    points = {
        sign: np.array(
            [(click.y, click.x) for click in clicks if click.positive is sign], dtype=float
        ).reshape(-1, 2)
        for sign in (True, False)
    }
    placed = {
        sign: np.clip(np.rint((p + 0.5) * scale - 0.5), 0, (height - 1, width - 1)).astype(np.intp)
        for sign, p in points.items()
    }
    to_object = _distance_to(placed[True], (height, width))
    to_background = _distance_to(placed[False], (height, width))
    nearer = to_object <= to_background
    # The other sign's own pixel is never taken away, however close the clicks are.
    nearer[tuple(placed[False].T)] = False
    nearer[tuple(placed[True].T)] = True
    return Seeds(
        positive=placed[True],
        negative=placed[False],
        object=(to_object <= parameters.radius) & nearer,
        background=(to_background <= parameters.radius) & ~nearer,
        object_sample=(to_object <= parameters.sample_radius) & nearer,
        background_sample=(to_background <= parameters.sample_radius) & ~nearer,
    )


def _distance_to(points: NDArray[np.intp], size: tuple[int, int]) -> NDArray[np.float32]:
    if not len(points):
        return np.full(size, np.inf, np.float32)
    elsewhere = np.ones(size, np.uint8)
    elsewhere[tuple(points.T)] = 0
    distance = cv2.distanceTransform(elsewhere, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.asarray(distance, np.float32)
