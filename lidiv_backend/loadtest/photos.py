"""The images that the annotators open: photographs that come with libraries, each time another."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from lidiv_backend.errors import BadImageError, DataError
from lidiv_backend.images import read_rgb
from lidiv_backend.photos import write_photos

#: Label Studio's folder of uploads.
UPLOADS = "/data/upload/1/"
_SUFFIXES = (".jpg", ".jpeg", ".png")
_KEPT = 64


def photographs(folder: Path, *, data: Path | None, longer_side: int) -> list[NDArray[np.uint8]]:
    """Read the photographs.

    Parameters
    ----------
    folder
        Where those that come with libraries are put.
    data
        A folder of images instead.
    longer_side
        Larger ones are made smaller; pixels.

    Returns
    -------
    list of ndarray
        uint8 (H, W, 3).

    Raises
    ------
    DataError
        If there are none.
    """
    if data is None:
        paths = write_photos(folder)
    else:
        paths = [path for path in sorted(data.rglob("*")) if path.suffix.lower() in _SUFFIXES]
    found = []
    for path in paths[:200]:
        try:
            rgb = read_rgb(path)
        except BadImageError:
            continue
        scale = longer_side / max(rgb.shape[:2])
        if scale < 1:
            rgb = cv2.resize(rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA).astype(
                np.uint8
            )
        found.append(rgb)
    if not found:
        raise DataError(f"There are no images in {data}.", remedy="Name another folder by --data.")
    return found


@dataclass(frozen=True)
class PhotoHost:
    """What the annotators' Label Studio would be to the backend: it has the images.

    Parameters
    ----------
    url
        On the loopback address.
    token
        What images are given out for.
    sizes
        Width and height of the photographs; image n shows photograph n modulo their number.
    """

    url: str
    token: str
    sizes: tuple[tuple[int, int], ...]


@contextmanager
def photo_host(photos: Sequence[NDArray[np.uint8]], *, token: str) -> Iterator[PhotoHost]:
    """Serve images by their number until the block ends, no two of them the same.

    Parameters
    ----------
    photos
        uint8 (H, W, 3) each.
    token
        What must be sent along.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, _Variants(photos), token))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="images", daemon=True)
    thread.start()
    try:
        yield PhotoHost(
            url=f"http://127.0.0.1:{server.server_port}",
            token=token,
            sizes=tuple((photo.shape[1], photo.shape[0]) for photo in photos),
        )
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Variants:
    """Files of images by number: a photograph, mirrored or not, a little brighter or darker."""

    def __init__(self, photos: Sequence[NDArray[np.uint8]]) -> None:
        self._photos = photos
        self._files: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def file(self, number: int) -> bytes:
        with self._lock:
            if number not in self._files:
                self._files[number] = self._encoded(number)
                if len(self._files) > _KEPT:
                    self._files.popitem(last=False)
            return self._files[number]

    def _encoded(self, number: int) -> bytes:
        rgb = self._photos[number % len(self._photos)]
        draw = np.random.default_rng(number)
        changed = cv2.convertScaleAbs(
            rgb, alpha=float(draw.uniform(0.8, 1.2)), beta=float(draw.uniform(-15, 15))
        )
        if draw.random() < 0.5:
            changed = cv2.flip(changed, 1)
        bgr = cv2.cvtColor(changed, cv2.COLOR_RGB2BGR)
        _, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 92])
        return encoded.tobytes()


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, variants: _Variants, token: str, *args: object) -> None:
        self._variants = variants
        self._token = token
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        number = self.path.removeprefix(UPLOADS).removesuffix(".jpg")
        if self.headers.get("Authorization") != f"Token {self._token}":
            self.send_error(401)
            return
        if not number.isdecimal():
            self.send_error(404)
            return
        body = self._variants.file(int(number))
        self.send_response(200)
        self.send_header("Content-Type", "image/jpeg")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass
