"""A second lab, made by code: flaws in materials that only their texture tells apart.

It is synthetic, and says less than images that somebody took; but neither its objects nor their
edges look like anything that the preset was trained on, everybody has it, and its masks are exact.
The textures are scikit-image's photographs of brick, grass and gravel.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from lidiv_backend.photos import read_packaged
from lidiv_backend.records import AnnotatedImage, ObjectMask

#: What the materials are.
MATERIALS = ("brick.png", "grass.png", "gravel.png")
_HEIGHT, _WIDTH = 256, 320
_FLAWS = (3, 6)
# Radius of a flaw in pixels, and how far its outline strays from a circle.
_RADII, _WAVES = (16.0, 40.0), 0.25
# Mean and spread that every material is brought to, in grey levels, so that neither tells a flaw.
_MEAN, _SPREAD = 120.0, 38.0
_TRIES = 40


class Textures:
    """Pictures of one material with flaws of another; an `ImageSet`.

    Parameters
    ----------
    length
        So many pictures.
    seed
        Of everything random.
    """

    def __init__(self, length: int = 90, *, seed: int = 0) -> None:
        self.name = "textures"
        self._length = length
        self._seed = seed
        self._materials = [
            cv2.cvtColor(read_packaged(name), cv2.COLOR_RGB2GRAY) for name in MATERIALS
        ]

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> AnnotatedImage:
        rng = np.random.default_rng([self._seed, index])
        ground, other = rng.choice(len(self._materials), 2, replace=False)
        grey, flawed = self._piece(ground, rng), self._piece(other, rng)
        taken = np.zeros(grey.shape, dtype=bool)
        objects = []
        for number in range(1, int(rng.integers(_FLAWS[0], _FLAWS[1] + 1)) + 1):
            mask = _flaw(taken, rng)
            if mask is not None:
                objects.append(ObjectMask(name=f"{index} {number}", mask=mask))
        share = cv2.GaussianBlur(taken.astype(np.float32), (0, 0), 0.8)
        grey = grey + share * (flawed - grey)
        # The lamp stands somewhere, and the camera is not perfect.
        rows, columns = np.mgrid[0 : 1 : _HEIGHT * 1j, 0 : 1 : _WIDTH * 1j]
        slope = rng.uniform(-25, 25, 2)
        grey = grey + slope[0] * (rows - 0.5) + slope[1] * (columns - 0.5)
        grey = grey + rng.normal(0, 3, grey.shape)
        rgb = np.repeat(grey.clip(0, 255).round().astype(np.uint8)[..., None], 3, axis=2)
        return AnnotatedImage(name=f"textures {index}", rgb=rgb, objects=tuple(objects))

    def _piece(self, material: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Somewhere in a material, turned and scaled."""
        grey = np.rot90(self._materials[material], int(rng.integers(4)))
        factor = rng.uniform(0.65, 1.0)
        size = round(grey.shape[1] * factor), round(grey.shape[0] * factor)
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
        top = int(rng.integers(grey.shape[0] - _HEIGHT + 1))
        left = int(rng.integers(grey.shape[1] - _WIDTH + 1))
        piece = grey[top : top + _HEIGHT, left : left + _WIDTH].astype(np.float64)
        result: NDArray[np.float64] = _MEAN + _SPREAD * (piece - piece.mean()) / piece.std()
        return result


def _flaw(taken: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_] | None:
    """A wavy disk where there is room; changes `taken`. None where there is no room."""
    height, width = taken.shape
    angles = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    for _ in range(_TRIES):
        radius = rng.uniform(*_RADII)
        phases = rng.uniform(0, 2 * np.pi, 3)
        strengths = rng.uniform(0, _WAVES, 3) / (1, 2, 3)
        waves = sum(
            strength * np.sin(order * angles + phase)
            for order, (strength, phase) in enumerate(zip(strengths, phases, strict=True), start=2)
        )
        reach = radius * (1 + waves)
        middle = rng.uniform((50, 50), (width - 50, height - 50))
        outline = middle + reach[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        drawn = np.zeros((height, width), np.uint8)
        cv2.fillPoly(drawn, [outline.round().astype(np.int32)], 1)
        mask = drawn.astype(bool)
        if not (cv2.dilate(drawn, np.ones((9, 9), np.uint8)).astype(bool) & taken).any():
            taken |= mask
            return mask
    return None
