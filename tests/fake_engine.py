"""A tiny engine that anybody can compute by hand: disks around the clicks.

``gunicorn -c deploy/gunicorn.conf.py "tests.fake_engine:serve()"`` serves it.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from flask import Flask
from numpy.typing import NDArray

from lidiv_backend.clicks import Click
from lidiv_backend.predictor import LOOKED_AHEAD, Proposal

#: Radii of the proposals, as shares of the image's shorter side; the best first.
RADII = (0.12, 0.2, 0.3, 0.4)


@dataclass(frozen=True)
class FakeEmbedding:
    key: str
    height: int
    width: int


class FakeEngine:
    """Proposals are disks of growing radius around the positive clicks, less small ones around the
    negative. The previous mask's pixels stay, outside the negatives: that shows what was passed."""

    def __init__(
        self,
        version: str = "fake-1",
        *,
        radii: Sequence[float] = RADII,
        ahead: Sequence[float] | None = None,
    ) -> None:
        self.version = version
        self.radii = tuple(radii)
        #: Radii of what it looks ahead to, around the first click; None if it never does.
        self.ahead = ahead
        #: How often it was asked to.
        self.looked_ahead = 0
        self.embedded: list[str] = []
        self.calls: list[tuple[tuple[Click, ...], NDArray[np.bool_] | None]] = []
        self.prepared: list[tuple[tuple[Click, ...], NDArray[np.bool_]]] = []
        #: Called inside `embed`; lets a test hold it up.
        self.while_embedding: Callable[[], None] = lambda: None
        self._known: dict[str, FakeEmbedding] = {}
        self._lock = threading.Lock()

    def embed(self, rgb: NDArray[np.uint8]) -> FakeEmbedding:
        key = f"{self.version}:{hashlib.sha256(rgb.tobytes()).hexdigest()[:12]}:{rgb.shape}"
        with self._lock:
            if key not in self._known:
                self.while_embedding()
                self.embedded.append(key)
                self._known[key] = FakeEmbedding(key, rgb.shape[0], rgb.shape[1])
            return self._known[key]

    def find(self, key: str) -> FakeEmbedding | None:
        return self._known.get(key)

    def forget(self) -> None:
        """Forget who asked for what, and all images."""
        with self._lock:
            self.calls.clear()
            self.embedded.clear()
            self.prepared.clear()
            self._known.clear()

    def predict(
        self,
        image: FakeEmbedding,
        clicks: Sequence[Click],
        previous: NDArray[np.bool_] | None = None,
    ) -> list[Proposal]:
        self.calls.append((tuple(clicks), previous))
        side = min(image.height, image.width)
        proposals = []
        for head, radius in enumerate(self.radii):
            mask = np.zeros((image.height, image.width), dtype=bool)
            if previous is not None:
                mask |= previous
            for click in clicks:
                reach = radius * side if click.positive else 0.06 * side
                disk = disk_mask(image.height, image.width, click.x, click.y, reach)
                mask = mask | disk if click.positive else mask & ~disk
            proposals.append(Proposal(mask=mask, score=0.9 - 0.1 * head, head=head))
        return proposals

    def can_look_ahead(self, clicks: Sequence[Click], proposals: Sequence[Proposal]) -> bool:
        return self.ahead is not None and len(clicks) == 1

    def look_ahead(
        self, image: FakeEmbedding, clicks: Sequence[Click], proposals: Sequence[Proposal]
    ) -> list[Proposal]:
        self.looked_ahead += 1
        side = min(image.height, image.width)
        return [
            Proposal(
                mask=disk_mask(image.height, image.width, clicks[0].x, clicks[0].y, radius * side),
                score=0.3,
                head=LOOKED_AHEAD,
            )
            for radius in self.ahead or ()
        ]

    def prepare(
        self, image: FakeEmbedding, clicks: Sequence[Click], shown: NDArray[np.bool_]
    ) -> None:
        self.prepared.append((tuple(clicks), shown))


def disk_mask(height: int, width: int, x: float, y: float, radius: float) -> NDArray[np.bool_]:
    rows, columns = np.ogrid[:height, :width]
    inside: NDArray[np.bool_] = (rows - y) ** 2 + (columns - x) ** 2 <= radius**2
    return inside


def serve(version: str = "fake-1") -> Flask:
    """The real application with this engine, settings from the environment."""
    from lidiv_backend.server.app import create_app

    return create_app(engine=FakeEngine(version))
