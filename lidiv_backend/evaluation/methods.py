"""Methods by name: presets, folders of weights, classical systems, anybody's own object."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from lidiv_backend.clicks import Click
from lidiv_backend.errors import BadRequestError
from lidiv_backend.evaluation.protocols import Method
from lidiv_backend.predictor import Predictor

#: Behind a method: its mask is refined by a graph cut, as in DOS.
_REFINED = "+graph-cut"

_PACKAGE = "lidiv_backend.evaluation.classical"

#: Name -> class of the classical system; imported when it is used, for it needs more packages.
CLASSICAL: dict[str, tuple[str, str]] = {
    "random-walk": (f"{_PACKAGE}.random_walk", "RandomWalk"),
    "geodesic-matting": (f"{_PACKAGE}.geodesic", "GeodesicMatting"),
    "graph-cut": (f"{_PACKAGE}.graph_cut", "GraphCut"),
    "euclidean-star-convexity": (f"{_PACKAGE}.star", "EuclideanStarConvexity"),
    "geodesic-star-convexity": (f"{_PACKAGE}.star", "GeodesicStarConvexity"),
    "grabcut": (f"{_PACKAGE}.grabcut", "GrabCut"),
}

#: Longest side of the image for the classical systems, pixels.
CLASSICAL_LONGEST_SIDE = 320


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodSpec:
    """A method that was asked for.

    Parameters
    ----------
    label
        What it is called in tables and pictures.
    source
        ``paper``, ``default``, another preset, a folder of weights, a classical system's name, or
        ``module:callable`` for a callable without arguments that returns a `Method`. With
        ``+graph-cut`` behind it, its mask is refined by a graph cut.
    longest_side
        Classical systems and graph cuts work on the image reduced to this; None for its full
        size.
    """

    label: str
    source: str
    longest_side: int | None = CLASSICAL_LONGEST_SIDE

    @classmethod
    def parse(cls, text: str, *, longest_side: int | None = CLASSICAL_LONGEST_SIDE) -> MethodSpec:
        """Read ``source`` or ``label=source`` as it is typed."""
        label, equals, source = text.partition("=")
        if not equals:
            label, source = Path(text).name if "/" in text else text, text
        if not label or not source:
            raise BadRequestError(
                f"{text!r} names no method.", remedy="Write a name, or label=name."
            )
        return cls(label=label, source=source, longest_side=longest_side)


def load_method(spec: MethodSpec) -> Method:
    """Make a method ready, imports and first-use costs included.

    Parameters
    ----------
    spec
        Which.

    Raises
    ------
    LidivError
        If there is no such method or its weights or packages are missing.
    """
    method = _make(spec)
    # What is paid once for each process is no part of the time of a click.
    rgb = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    method.predict(
        method.embed(rgb), [Click(x=64, y=48, positive=True), Click(x=3, y=3, positive=False)]
    )
    return method


def _make(spec: MethodSpec) -> Method:
    if spec.source in CLASSICAL:
        system = _classical(*CLASSICAL[spec.source])
        return cast(Method, system(longest_side=spec.longest_side))
    if spec.source.endswith(_REFINED):
        refined = _classical(f"{_PACKAGE}.refine", "Refined")
        unrefined = replace(spec, source=spec.source.removesuffix(_REFINED))
        return cast(Method, refined(_make(unrefined), longest_side=spec.longest_side))
    module, colon, name = spec.source.partition(":")
    if colon and not Path(spec.source).exists():
        try:
            return cast(Method, getattr(importlib.import_module(module), name)())
        except (ImportError, AttributeError) as error:
            raise BadRequestError(
                f"The method {spec.source} cannot be imported: {error}.",
                remedy="Write module:callable, with the module on the Python path.",
            ) from error
    # Every image is embedded once, so there is nothing to cache, and times are honest.
    return Predictor.from_pretrained(spec.source, cache_bytes=0)


def _classical(module: str, name: str) -> Any:
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise BadRequestError(
            f"{name} needs the package {error.name}, which is not installed.",
            remedy="Install lidiv-backend[classical].",
        ) from error


def version_of(method: Method) -> str:
    """Name of the method's weights and parameters, its class where it has no ``version``."""
    return str(getattr(method, "version", type(method).__qualname__))


def describe(method: Method) -> str:
    """Say for people how a method was trained or what its parameters are, in one line."""
    if not isinstance(method, Predictor):
        return str(getattr(method, "about", ""))
    training = method.model.description.training
    known = {key: value for key, value in training.items() if isinstance(value, int | float | str)}
    return ", ".join(f"{key} {value}" for key, value in known.items())
