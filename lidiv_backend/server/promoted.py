"""The model that learning has put in use, as an engine."""

from __future__ import annotations

import logging
from collections.abc import Hashable

from lidiv_backend.errors import WeightsError
from lidiv_backend.labelstudio.engine import Engine
from lidiv_backend.learning.files import StorageError
from lidiv_backend.learning.registry import BASE, ModelRegistry, UnknownVersionError
from lidiv_backend.predictor import EmbeddingCaches, Predictor

_LOG = logging.getLogger(__name__)


class PromotedModel:
    """What the pointer of a channel names; a `lidiv_backend.server.engines.Watched`.

    Parameters
    ----------
    registry
        The versions.
    channel
        Whose pointer.
    device
        Where to compute; chosen if None.
    caches
        Keep embeddings, those of other models beside these; its own if None.
    """

    def __init__(
        self,
        registry: ModelRegistry,
        channel: str,
        *,
        device: str | None,
        caches: EmbeddingCaches | None = None,
    ) -> None:
        self._registry = registry
        self._channel = channel
        self._device = device
        self._caches = caches

    def stamp(self) -> Hashable:
        """Tell cheaply whether the pointer is still the same."""
        return self._registry.stamp(self._channel)

    def load(self) -> Engine:
        """Load the version that the pointer names.

        Raises
        ------
        LidivError
            If the pointer or the version is damaged.
        """
        return self._predictor(self._registry.pointer(self._channel).version)

    def load_any(self) -> Engine:
        """Load the version that the pointer names, or the preset where that is damaged.

        Raises
        ------
        LidivError
            If the preset cannot be loaded either.
        """
        try:
            return self.load()
        except (WeightsError, StorageError, UnknownVersionError) as error:
            if self._registry.stamp(self._channel) == ():
                raise
            _LOG.error("The version in use cannot be loaded, the preset is served. %s", error)
        return self.load_preset()

    def load_preset(self) -> Engine:
        """Load what LiDiv came with, whatever was promoted.

        Raises
        ------
        LidivError
            If it cannot be loaded.
        """
        return self._predictor(BASE)

    def _predictor(self, version: str) -> Engine:
        predictor = Predictor.from_pretrained(
            self._registry.source(version), device=self._device, caches=self._caches
        )
        # Whoever waits for the model would otherwise wait for the same at the first click.
        predictor.warm_up()
        return predictor
