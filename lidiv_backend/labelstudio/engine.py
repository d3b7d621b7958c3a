"""What the protocol layer needs of a model; `lidiv_backend.predictor.Predictor` is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lidiv_backend.clicks import Click
from lidiv_backend.errors import LidivError
from lidiv_backend.predictor import Proposal


class EngineNotReadyError(LidivError):
    """The model is still being loaded, or could not be."""

    status = 503
    kind = "not ready"


class Engine(Protocol):
    """A model with its weights: thread safe, and without any state of an annotator's.

    An embedding is whatever `embed` returns; it has ``key`` (str, says the image and the weights),
    ``height`` and ``width`` (int, pixels).
    """

    @property
    def version(self) -> str:
        """Identifies the weights."""

    def embed(self, rgb: NDArray[np.uint8]) -> Any:
        """Compute, or find, everything about an image that no click changes."""

    def find(self, key: str) -> Any | None:
        """Return the embedding that has this key, or None where it is not kept any more."""

    def predict(
        self,
        image: Any,
        clicks: Sequence[Click],
        previous: NDArray[np.bool_] | None = None,
    ) -> list[Proposal]:
        """Propose masks for the clicks, best first; at least one."""

    def can_look_ahead(self, clicks: Sequence[Click], proposals: Sequence[Proposal]) -> bool:
        """Whether `look_ahead` may add alternatives to these; costs nothing."""

    def look_ahead(
        self, image: Any, clicks: Sequence[Click], proposals: Sequence[Proposal]
    ) -> list[Proposal]:
        """Propose further alternatives to what `predict` gave; none if there are none."""

    def prepare(self, image: Any, clicks: Sequence[Click], shown: NDArray[np.bool_]) -> None:
        """Get ready for a further click on the mask that is shown."""


class Engines(Protocol):
    """The engines of this process: the one in use, and those that interactions are pinned to."""

    @property
    def version(self) -> str:
        """What is served, also while it is still being loaded."""

    def current(self) -> Engine:
        """Return the engine in use, waiting for it while it is being loaded.

        Raises
        ------
        EngineNotReadyError
            If it takes too long, or failed.
        """

    def pinned(self, version: str | None) -> Engine:
        """Return the engine of a version, or the one in use where that is gone."""
