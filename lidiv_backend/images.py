"""Reading image files: the one place where bytes become upright 8-bit RGB.

The server, the readers of training data and the benchmarks all come through here, so that a photo
with an EXIF orientation is the same picture everywhere.
"""

from __future__ import annotations

import contextlib
import io
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from lidiv_backend.errors import BadImageError

#: Largest number of pixels that is decoded unless the caller allows more.
MAX_PIXELS = 100_000_000
#: Pillow's own limit: more are refused whatever the caller allows.
PILLOW_MAX_PIXELS = 178_956_970

# Images with more pixels than this are decoded one at a time: each takes up to a dozen bytes for a
# pixel, however small its file is.
_LARGE_PIXELS = 20_000_000
_ONE_LARGE = threading.Lock()

# Raster formats that people annotate. Others that Pillow knows are refused: EPS, for one, would
# run Ghostscript on what a stranger sent.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")

# What Pillow and its decoders raise on damaged files.
_DECODE_ERRORS = (
    UnidentifiedImageError,
    Image.DecompressionBombError,
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
)


def read_rgb(source: str | Path | bytes, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Read an image as upright RGB.

    Grey and palette images become RGB, transparency is laid on white, 16-bit grey keeps its upper
    8 bits (as a browser shows it), of several frames the first is taken, and the EXIF orientation
    is applied.

    Parameters
    ----------
    source
        Path of the file, or its content.
    max_pixels
        Refuse images with more pixels than this; checked before anything is decoded. Pillow's own
        limit, `PILLOW_MAX_PIXELS`, holds besides.

    Returns
    -------
    ndarray
        uint8 (H, W, 3), upright.

    Raises
    ------
    BadImageError
        If the file is missing, unreadable, truncated, of an unknown kind, or too large.
    """
    with _upright(source, max_pixels=max_pixels) as image:
        rgb = _to_rgb(image)
        if rgb is not image:
            # Two of them and the array would be three.
            image.close()
        return np.ascontiguousarray(np.asarray(rgb, dtype=np.uint8))


def read_labels(source: str | Path | bytes, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.int32]:
    """Read a mask or a label map as the numbers that the file holds.

    Palette images give their indices, not their colours. A colour image whose channels differ
    gives ``red * 65536 + green * 256 + blue``; alpha is left out, unless only it tells pixels
    apart.

    Parameters
    ----------
    source
        Path of the file, or its content.
    max_pixels
        As for `read_rgb`.

    Returns
    -------
    ndarray
        int32 (H, W), upright.

    Raises
    ------
    BadImageError
        If the file is missing, unreadable, truncated, of an unknown kind, or too large.
    """
    with _upright(source, max_pixels=max_pixels) as image:
        if image.mode in ("1", "L", "P", "I") or image.mode.startswith("I;16"):
            return np.asarray(image).astype(np.int32)
        rgba = np.asarray(image.convert("RGBA")).astype(np.int32)
    red, green, blue, alpha = (rgba[..., channel] for channel in range(4))
    if (red == green).all() and (green == blue).all():
        return alpha if red.min() == red.max() and alpha.min() < alpha.max() else red
    packed: NDArray[np.int32] = (red << 16) | (green << 8) | blue
    return packed


@contextlib.contextmanager
def _upright(source: str | Path | bytes, *, max_pixels: int) -> Iterator[Image.Image]:
    """Open, check the size, decode, and turn upright; large ones one at a time."""
    try:
        Image.init()
        formats = [name for name in _FORMATS if name in Image.OPEN]
        file = io.BytesIO(source) if isinstance(source, bytes) else Path(source)
        with Image.open(file, formats=formats) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise BadImageError(
                    f"{_describe(source)} has {width} x {height} pixels, more than the limit of "
                    f"{max_pixels:,}.",
                    remedy="Scale the image down, or raise the limit.",
                )
            is_large = width * height > _LARGE_PIXELS
            with _ONE_LARGE if is_large else contextlib.nullcontext():
                image.load()
                ImageOps.exif_transpose(image, in_place=True)
                yield image
    except BadImageError:
        raise
    except _DECODE_ERRORS as error:
        raise _unreadable(source, error) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert whatever Pillow read into mode RGB."""
    if image.mode.startswith("I;16"):
        wide = np.asarray(image)
        return Image.fromarray((wide >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError("32-bit pixels have no agreed range")
    if image.has_transparency_data:
        rgba = image if image.mode == "RGBA" else image.convert("RGBA")
        white = Image.new("RGB", rgba.size, (255, 255, 255))
        white.paste(rgba, mask=rgba)
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


def _describe(source: str | Path | bytes) -> str:
    return "The image" if isinstance(source, bytes) else f"The image {source}"


def _unreadable(source: str | Path | bytes, error: Exception) -> BadImageError:
    if isinstance(error, FileNotFoundError):
        return BadImageError(f"{_describe(source)} does not exist.", remedy="Check the path.")
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        reason = "it is not an image of a known kind"
    return BadImageError(
        f"{_describe(source)} cannot be read: {reason}.",
        remedy="Save it again as 8-bit JPEG or PNG.",
    )
