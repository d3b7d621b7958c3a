"""Images and masks by their content: what is named is never changed, so nothing can shift."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lidiv_backend.errors import BadImageError, DataError
from lidiv_backend.images import read_labels, read_rgb
from lidiv_backend.learning.files import write_file

_DIGEST = re.compile(r"[0-9a-f]{64}")


class Vault:
    """A folder of images and masks, each under the sha256 of its size and pixels.

    Parameters
    ----------
    folder
        Made when something is put in.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put_image(self, rgb: NDArray[np.uint8]) -> str:
        """Keep an image.

        Parameters
        ----------
        rgb
            uint8 (H, W, 3), upright.

        Returns
        -------
        str
            Its digest.

        Raises
        ------
        StorageError
            If there is no room.
        """
        return self._put("images", rgb, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))

    def put_mask(self, mask: NDArray[np.bool_]) -> str:
        """Keep a mask, bool (H, W); see `put_image`."""
        return self._put("masks", mask, mask.astype(np.uint8) * 255)

    def has_image(self, digest: str) -> bool:
        """Tell whether an image is there and whole; it is read for that."""
        return self._has("images", digest)

    def image_size(self, digest: str) -> tuple[int, int]:
        """Height and width of an image, without reading its pixels.

        Raises
        ------
        DataError
            If it is not there, or damaged.
        """
        try:
            with Image.open(self._path("images", digest)) as image:
                return image.height, image.width
        except (OSError, ValueError, SyntaxError) as error:
            raise _damaged("image", digest) from error

    def image(self, digest: str) -> NDArray[np.uint8]:
        """Read an image, uint8 (H, W, 3).

        Raises
        ------
        DataError
            If it is not there, or damaged.
        """
        try:
            rgb = read_rgb(self._path("images", digest))
        except BadImageError as error:
            raise _damaged("image", digest) from error
        if _digest(rgb) != digest:
            raise _damaged("image", digest)
        return rgb

    def mask(self, digest: str) -> NDArray[np.bool_]:
        """Read a mask, bool (H, W).

        Raises
        ------
        DataError
            If it is not there, or damaged.
        """
        try:
            mask = read_labels(self._path("masks", digest)) > 0
        except BadImageError as error:
            raise _damaged("mask", digest) from error
        if _digest(mask) != digest:
            raise _damaged("mask", digest)
        return mask

    def _put(
        self, kind: str, pixels: NDArray[np.uint8] | NDArray[np.bool_], written: cv2.typing.MatLike
    ) -> str:
        digest = _digest(pixels)
        path = self._path(kind, digest)
        if not self._has(kind, digest):
            # The lowest level is fast, and what is kept is read often.
            _, encoded = cv2.imencode(".png", written, [cv2.IMWRITE_PNG_COMPRESSION, 1])
            write_file(path, encoded.tobytes())
        return digest

    def _has(self, kind: str, digest: str) -> bool:
        try:
            (self.image if kind == "images" else self.mask)(digest)
        except DataError:
            return False
        return True

    def _path(self, kind: str, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise DataError(f"'{digest}' names no {kind}.")
        return self._folder / kind / digest[:2] / f"{digest}.png"


def _digest(pixels: NDArray[np.uint8] | NDArray[np.bool_]) -> str:
    content = hashlib.sha256(f"{pixels.dtype} {pixels.shape}".encode())
    content.update(np.ascontiguousarray(pixels).data)
    return content.hexdigest()


def _damaged(what: str, digest: str) -> DataError:
    return DataError(
        f"The {what} {digest[:12]}... is not there or damaged.",
        remedy="It is fetched again for the next snapshot; restore LIDIV_STATE from a backup.",
    )
