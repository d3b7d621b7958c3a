"""Photographs that are on every machine: those that come inside scikit-image's package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from lidiv_backend.errors import LidivError

#: Files in the package's `data` folder that are photos of things one can click on.
PHOTOS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "rocket.jpg",
    "motorcycle_left.png",
    "camera.png",
    "coins.png",
    "ihc.png",
)


def write_photos(folder: Path) -> list[Path]:
    """Put the photographs into a folder, as JPEG.

    Photos that are there already are left alone.

    Parameters
    ----------
    folder
        Made if missing.

    Returns
    -------
    list of pathlib.Path
        The files, in the order of `PHOTOS`.

    Raises
    ------
    LidivError
        If scikit-image or one of the photos is missing.
    OSError
        If a file cannot be written.
    """
    # Also where all of them are there already: whoever asks is told what is missing.
    _package_folder()
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name in PHOTOS:
        target = folder / f"{Path(name).stem}.jpg"
        if not target.exists():
            pixels = read_packaged(name)[..., ::-1]
            _, encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 95])
            # OpenCV's own writing says nothing of a disk that is full, and leaves half a file.
            aside = target.with_suffix(".part")
            aside.write_bytes(encoded.tobytes())
            aside.replace(target)
        written.append(target)
    return written


def read_packaged(name: str) -> NDArray[np.uint8]:
    """Read a picture of scikit-image's package.

    Parameters
    ----------
    name
        A file in the package's `data` folder.

    Returns
    -------
    ndarray
        uint8 (H, W, 3), RGB.

    Raises
    ------
    LidivError
        If scikit-image or the picture is missing.
    """
    pixels = cv2.imread(str(_package_folder() / name), cv2.IMREAD_COLOR)
    if pixels is None:
        raise LidivError(
            f"scikit-image has no readable photo {name}.",
            remedy="Install scikit-image 0.24 or later.",
        )
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)


def _package_folder() -> Path:
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise LidivError(
            "Photographs for the demo and the gate come with scikit-image, which is not installed.",
            remedy='Run `make demo`, or `pip install "lidiv-backend[classical]"`.',
        )
    return Path(spec.origin).parent / "data"
