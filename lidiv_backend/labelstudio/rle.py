"""Label Studio's run-length encoding of masks.

A bit stream: 32 bits of length (height * width * 4, every pixel as RGBA), 5 bits of word size
less 1, four run sizes less 1 of 4 bits each; then runs: one bit that says whether one value repeats
or several follow, 2 bits that choose the run size, the run's length less 1, and its value(s).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from label_studio_sdk.converter.brush import mask2rle
from numpy.typing import NDArray

from lidiv_backend.errors import LidivError
from lidiv_backend.images import MAX_PIXELS

_HEADER_BITS = 32 + 5 + 4 * 4
_WORD_SIZE = 8


class BadRegionError(LidivError):
    """A region's RLE is malformed or of the wrong size."""

    status = 422
    kind = "bad region"


def encode_mask(mask: NDArray[np.bool_]) -> list[int]:
    """Encode a mask, and make sure that it decodes to itself.

    A malformed RLE that an annotator accepts breaks every later save of the annotation, so
    nothing is returned that was not decoded and compared.

    Parameters
    ----------
    mask
        bool (H, W).

    Returns
    -------
    list of int
        The bytes of the stream.

    Raises
    ------
    BadRegionError
        If decoding gives another mask.
    """
    # Alpha 255 is opaque; 1 would be an invisible mask.
    rle: list[int] = mask2rle(mask.astype(np.uint8) * 255)
    height, width = mask.shape
    decoded = decode_mask(rle, height=height, width=width, max_pixels=mask.size)
    if not np.array_equal(decoded, mask):
        raise BadRegionError(
            "A mask did not survive its encoding.", remedy="Report this, with the image."
        )
    return rle


def decode_mask(
    rle: Sequence[int], *, height: int, width: int, max_pixels: int = MAX_PIXELS
) -> NDArray[np.bool_]:
    """Decode a mask, trusting nothing.

    Label Studio's own decoder takes the length from the stream, up to 4 GB, and reads past its
    end without a word; what comes from saved annotations is checked here.

    Parameters
    ----------
    rle
        The bytes of the stream.
    height, width
        Size of the mask in pixels.
    max_pixels
        Refuse masks with more pixels than this; checked before anything is decoded.

    Returns
    -------
    ndarray
        bool (H, W), True where the mask is more opaque than not.

    Raises
    ------
    BadRegionError
        If the stream is no list of bytes, ends early, runs over, or is of another size.
    """
    try:
        data = bytes(rle)
    except (TypeError, ValueError) as error:
        raise BadRegionError(
            "The RLE is not a list of bytes.", remedy="Delete the region and draw it again."
        ) from error
    available = len(data) * 8
    bits = _BitReader(data)
    if available < _HEADER_BITS:
        raise _malformed("it has no header")
    if height * width > max_pixels:
        raise BadRegionError(
            f"The RLE is for {width} x {height} pixels, more than the limit of {max_pixels:,}.",
            remedy="Scale the image down.",
        )
    length = bits.read(32)
    word_size = bits.read(5) + 1
    sizes = [bits.read(4) + 1 for _ in range(4)]
    if length != height * width * 4:
        raise BadRegionError(
            f"The RLE holds {length} values, but {width} x {height} pixels need "
            f"{height * width * 4}.",
            remedy="The region was made for another image; delete it and draw it again.",
        )
    if word_size != _WORD_SIZE:
        raise _malformed(f"its words have {word_size} bits instead of {_WORD_SIZE}")
    values = np.zeros(length, dtype=np.uint8)
    position = 0
    while position < length:
        repeats = bits.read(1)
        run = bits.read(sizes[bits.read(2)]) + 1
        if position + run > length:
            raise _malformed("a run goes past the last pixel")
        if repeats:
            values[position : position + run] = bits.read(_WORD_SIZE)
        else:
            values[position : position + run] = [bits.read(_WORD_SIZE) for _ in range(run)]
        position += run
    opaque: NDArray[np.bool_] = values.reshape(height, width, 4)[..., 3] > 127
    return opaque


def _malformed(reason: str) -> BadRegionError:
    return BadRegionError(
        f"The RLE is malformed: {reason}.", remedy="Delete the region and draw it again."
    )


class _BitReader:
    """Reads numbers of 1 to 32 bits, most significant bit first."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def read(self, count: int) -> int:
        end = self._position + count
        if end > len(self._data) * 8:
            raise _malformed("it ends early")
        first = self._position >> 3
        last = (end + 7) >> 3
        window = int.from_bytes(self._data[first:last], "big")
        self._position = end
        return (window >> ((last << 3) - end)) & ((1 << count) - 1)
