"""Data sets by name: from what a user types to a reader."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar
from urllib.parse import parse_qsl

from lidiv_backend.errors import DataError
from lidiv_backend.records import ImageSet


@dataclass(frozen=True, kw_only=True)
class ImageSetSpec:
    """What a user asks for: ``kind:path[,path][?option=value&...]``.

    Parameters
    ----------
    text
        As it was typed, for messages.
    kind
        Which reader.
    paths
        Files and folders that the reader needs, in its own order.
    options
        The reader's options.
    split
        ``train``, ``val`` or another part of the set; None for all of it.
    """

    text: str
    kind: str
    paths: tuple[Path, ...]
    options: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    split: str | None = None

    def require(self, *, paths: int, options: Collection[str] = ()) -> None:
        """Refuse a spec with another number of paths or with unknown options.

        Parameters
        ----------
        paths
            How many paths the reader needs.
        options
            The options that it knows.

        Raises
        ------
        DataError
            If something does not fit.
        """
        if len(self.paths) != paths:
            raise DataError(
                f"The data set {self.text!r} names {len(self.paths)} paths, but {self.kind} needs "
                f"{paths}.",
                remedy=f"Write it as {usage(self.kind)}.",
            )
        unknown = sorted(set(self.options) - set(options))
        if unknown:
            raise DataError(
                f"The data set {self.text!r} has unknown options: {', '.join(unknown)}.",
                remedy=f"{self.kind} knows: {', '.join(sorted(options)) or 'none'}.",
            )


Opener = Callable[[ImageSetSpec], ImageSet]


@dataclass(frozen=True, kw_only=True)
class _Registered:
    opener: Opener
    usage: str


_REGISTRY: dict[str, _Registered] = {}


def register_image_set(kind: str, opener: Opener, *, usage: str) -> None:
    """Make a reader known to `open_image_set`.

    Parameters
    ----------
    kind
        The word before the colon.
    opener
        Makes the reader from a spec; raises `DataError` where it cannot.
    usage
        How a spec of this kind is written, for messages, such as ``folder:/path``.

    Raises
    ------
    ValueError
        If another reader has this name.
    """
    if kind in _REGISTRY and _REGISTRY[kind].opener is not opener:
        raise ValueError(f"there is a reader called {kind!r} already")
    _REGISTRY[kind] = _Registered(opener=opener, usage=usage)


def known_image_sets() -> tuple[str, ...]:
    """How each known kind of data set is written, in alphabetical order."""
    return tuple(entry.usage for _, entry in sorted(_REGISTRY.items()))


def usage(kind: str) -> str:
    """How a data set of this kind is written; the kind itself if it is unknown."""
    return _REGISTRY[kind].usage if kind in _REGISTRY else kind


def open_image_set(spec: str, *, split: str | None = None) -> ImageSet:
    """Open a data set that a user names on the command line.

    Parameters
    ----------
    spec
        ``kind:path[,path][?option=value&...]``, such as ``shards:/data/train`` or
        ``coco:/data/val2017,/data/instances_val2017.json``. A path cannot contain ``,`` or ``?``.
    split
        Part of the set, such as ``train`` or ``val``; None for all of it. Sets without parts of
        their own are divided by `hash_split`.

    Returns
    -------
    ImageSet
        The reader.

    Raises
    ------
    DataError
        If the kind is unknown, or what lies there is not such a data set.
    """
    kind, colon, rest = spec.partition(":")
    if not colon or kind not in _REGISTRY:
        raise DataError(
            f"{spec!r} names no known kind of data set.",
            remedy=f"Known are: {', '.join(known_image_sets())}.",
        )
    listed, _, query = rest.partition("?")
    paths = tuple(Path(part).expanduser() for part in listed.split(",") if part)
    options = dict(parse_qsl(query, keep_blank_values=True))
    return _REGISTRY[kind].opener(
        ImageSetSpec(text=spec, kind=kind, paths=paths, options=options, split=split)
    )


def hash_split(name: str) -> str:
    """Part of a set without parts of its own that an image belongs to.

    A stable hash of the name decides, so an image keeps its part as the set grows.

    Parameters
    ----------
    name
        Name of the image.

    Returns
    -------
    str
        ``val`` for about one image in ten, else ``train``.
    """
    digest = hashlib.sha256(name.encode()).digest()
    return "val" if int.from_bytes(digest[:8], "big") % 10 == 0 else "train"


Item = TypeVar("Item")


def take_part(
    items: Sequence[Item], split: str | None, *, name: Callable[[Item], str], what: str
) -> list[Item]:
    """Take the part of a set without parts of its own, by `hash_split`.

    Parameters
    ----------
    items
        The images.
    split
        ``train`` or ``val``; None for all.
    name
        Gives an image's name.
    what
        What the set is called, for messages.

    Returns
    -------
    list
        The items of this part, in their order.

    Raises
    ------
    DataError
        If there is no such part, or nothing falls into it.
    """
    if split is None:
        return list(items)
    if split not in ("train", "val"):
        raise DataError(
            f"{what} has no split {split!r}.",
            remedy="Without splits of its own, it has train, val.",
        )
    part = [item for item in items if hash_split(name(item)) == split]
    if not part:
        raise DataError(
            f"{what} is so small that no image falls into its split {split!r}.",
            remedy="Use all of it, or add images.",
        )
    return part
