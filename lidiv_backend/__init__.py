"""Interactive image segmentation with latent diversity, as a Label Studio backend."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lidiv_backend.clicks import Click
    from lidiv_backend.predictor import Predictor, Proposal

__all__ = ["Click", "Predictor", "Proposal"]

_MODULES = {"Click": "clicks", "Predictor": "predictor", "Proposal": "predictor"}


def __getattr__(name: str) -> Any:
    """Import what is asked for: who only starts or watches a server needs no torch."""
    if name in _MODULES:
        return getattr(importlib.import_module(f"lidiv_backend.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
