"""Versions of the model: immutable folders, and for each channel a pointer to the one in use.

::

    models/<version>/              weights with ``model.json``, as `lidiv_backend.model` writes them
    models/<version>/report.json   since when it is kept, where it comes from, what the gate said
    channels/<channel>.json        the version in use, and those that were in use before it
    pins/<version>                 kept whatever happens

Everything is renamed into place, so that a reader sees the old or the new and nothing between. A
channel is ``shared``, or a project's own. Without a pointer, or where it points to ``base``, the
preset that LiDiv came with is in use.
"""

from __future__ import annotations

import fcntl
import hashlib
import re
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lidiv_backend.errors import BadRequestError, WeightsError
from lidiv_backend.learning.files import (
    ASIDE,
    StorageError,
    encode_json,
    explained,
    place_folder,
    read_json,
    write_file,
    write_json,
)
from lidiv_backend.model import load_model

#: The channel of all projects that learn together.
SHARED = "shared"
#: What a pointer says for the preset that LiDiv came with.
BASE = "base"
_REPORT, _ADDED = "report.json", "added"
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
#: A pointer remembers so many versions that were in use before.
_HISTORY = 50


class UnknownVersionError(BadRequestError):
    """There is no such version."""

    status = 404
    kind = "version"


@dataclass(frozen=True, kw_only=True)
class Pointer:
    """What is in use in a channel.

    Parameters
    ----------
    channel
        ``shared`` or a project's own, see `channel_of`.
    version
        Name of a version, or ``base``.
    history
        What was in use before, the latest first.
    """

    channel: str
    version: str = BASE
    history: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class VersionEntry:
    """A version that is kept.

    Parameters
    ----------
    version
        Its name: name and checksum of the weights.
    added
        Seconds since 1970.
    in_use
        Channels that point to it.
    pinned
        Whether it is kept whatever happens.
    report
        What came with it, as the gate wrote it.
    """

    version: str
    added: float
    in_use: tuple[str, ...]
    pinned: bool
    report: Mapping[str, Any] = field(default_factory=dict)


def channel_of(project: str) -> str:
    """Name the channel of a project of its own, fit for a file's name.

    Parameters
    ----------
    project
        As Label Studio sends it; anything.
    """
    if re.fullmatch(r"[0-9]{1,19}(\.[0-9]{1,19})?", project):
        return f"project-{project}"
    return f"project-x{hashlib.sha256(project.encode()).hexdigest()[:16]}"


def _report_in(folder: Path) -> dict[str, Any]:
    try:
        report = read_json(folder / _REPORT)
    except StorageError:
        return {}
    return report if isinstance(report, dict) else {}


class ModelRegistry:
    """The versions in a state folder.

    Several processes may use one at the same time.

    Parameters
    ----------
    state
        The state folder.
    base
        Preset or folder of weights that is in use where nothing was promoted.
    keep
        So many versions are kept, besides those that are in use or pinned.
    """

    def __init__(self, state: Path, *, base: str | Path, keep: int = 5) -> None:
        self._state = state
        self._models = state / "models"
        self._channels = state / "channels"
        self._pins = state / "pins"
        self.base = base
        self._keep = keep

    def add(self, weights: Path, report: Mapping[str, Any]) -> str:
        """Take on a folder of weights as a new version.

        Parameters
        ----------
        weights
            As `lidiv_backend.model.save_model` writes it; it is copied.
        report
            What is to be said of it; JSON.

        Returns
        -------
        str
            The version. The same weights again are the same version, and keep their first report.

        Raises
        ------
        WeightsError
            If they cannot be loaded.
        StorageError
            If there is no room.
        """
        version = load_model(weights).version
        target = self._folder(version)
        with self.locked():
            # Not the folder's own time, which a backup does not bring back.
            kept = {**report, _ADDED: time.time()}
            place_folder(weights, target, extra={_REPORT: encode_json(kept)})
        return version

    def report(self, version: str) -> dict[str, Any]:
        """What `add` was told of a version; nothing of the base and of one that is not kept."""
        report = {} if version == BASE else _report_in(self._folder(version))
        report.pop(_ADDED, None)
        return report

    def source(self, version: str) -> Path | str:
        """What `load_model` takes for a version: its folder, or the base preset.

        Raises
        ------
        UnknownVersionError
            If it is not kept.
        """
        if version == BASE:
            return self.base
        folder = self._folder(version)
        if not folder.is_dir():
            raise UnknownVersionError(
                f"There is no version '{version}'.", remedy="`lidiv models list` shows those kept."
            )
        return folder

    def pointer(self, channel: str) -> Pointer:
        """Read what is in use in a channel."""
        path = self._pointer_path(channel)
        if not path.exists():
            return Pointer(channel=channel)
        values = read_json(path)
        try:
            version, history = str(values["version"]), tuple(map(str, values["history"]))
        except (KeyError, TypeError) as error:
            raise StorageError(
                f"{path} is no pointer to a version.", remedy="Delete it, and promote a version."
            ) from error
        return Pointer(channel=channel, version=version, history=history)

    def stamp(self, channel: str) -> tuple[int, ...]:
        """Tell two states of a pointer apart without reading it; cheap."""
        try:
            found = self._pointer_path(channel).stat()
        except OSError:
            return ()
        return found.st_mtime_ns, found.st_ino, found.st_size

    def channels(self) -> list[str]:
        """Give all channels that have a pointer, in alphabetical order."""
        return sorted(path.stem for path in self._channels.glob("[!.]*.json"))

    def promote(self, channel: str, version: str, *, expected: str | None = None) -> bool:
        """Put a version in use.

        Parameters
        ----------
        channel
            Where.
        version
            A version that is kept, or ``base``.
        expected
            Only if this is what is in use now; None for in any case.

        Returns
        -------
        bool
            False if something else than `expected` is in use.

        Raises
        ------
        UnknownVersionError
            If it is not kept.
        WeightsError
            If it is damaged; then the pointer stays.
        """
        load_model(self.source(version))
        with self.locked():
            now = self.pointer(channel)
            if now.version == version:
                return True
            if expected is not None and now.version != expected:
                return False
            self._point(channel, version, (now.version, *now.history))
        return True

    def rollback(self, channel: str, *, expected: str | None = None) -> str | None:
        """Put the version before in use again.

        Parameters
        ----------
        channel
            Where.
        expected
            Only if this is what is in use now; None for in any case.

        Returns
        -------
        str or None
            What is in use now; None if that is something else than `expected`, and stays so.

        Raises
        ------
        BadRequestError
            If there is none before it that can be used.
        """
        with self.locked():
            now = self.pointer(channel)
            if expected is not None and now.version != expected:
                return None
            for place, version in enumerate(now.history):
                if self._is_usable(version):
                    self._point(channel, version, now.history[place + 1 :])
                    return version
        raise BadRequestError(
            f"In the channel {channel} there is no version to go back to.",
            remedy=f"Choose one with `lidiv models promote`, or '{BASE}' for the preset.",
        )

    def pin(self, version: str) -> None:
        """Keep a version whatever happens."""
        self.source(version)
        write_file(self._pins / version, b"")

    def unpin(self, version: str) -> None:
        """Let a version go once it is old."""
        with explained(f"Unpinning {version}"):
            (self._pins / version).unlink(missing_ok=True)

    def versions(self) -> list[VersionEntry]:
        """Give all versions that are kept, the newest first."""
        in_use: dict[str, list[str]] = {}
        for channel in self.channels():
            in_use.setdefault(self.pointer(channel).version, []).append(channel)
        entries = []
        for folder in self._models.glob("*"):
            if not folder.is_dir() or folder.name.startswith(ASIDE):
                continue
            report = _report_in(folder)
            added = report.pop(_ADDED, None)
            entries.append(
                VersionEntry(
                    version=folder.name,
                    added=added if isinstance(added, float) else folder.stat().st_mtime,
                    in_use=tuple(in_use.get(folder.name, ())),
                    pinned=(self._pins / folder.name).exists(),
                    report=report,
                )
            )
        return sorted(entries, key=lambda entry: (-entry.added, entry.version))

    def prune(self, *, protected: Collection[str] = ()) -> list[str]:
        """Delete old versions beyond those that are kept, and what a crash left behind.

        A version that is in use, that the pointers go back to next, that is pinned or protected
        stays.

        Parameters
        ----------
        protected
            Versions that something else needs, such as a training that is under way.

        Returns
        -------
        list of str
            What was deleted.
        """
        with self.locked():
            needed = set(protected)
            for channel in self.channels():
                pointer = self.pointer(channel)
                needed |= {pointer.version, *pointer.history[:1]}
            spare = [
                entry.version
                for entry in self.versions()
                if entry.version not in needed and not entry.pinned
            ]
            deleted = spare[self._keep :]
            for version in deleted:
                # Renamed first: a half deleted folder must not be taken for a version.
                aside = self._models / f"{ASIDE}{version}"
                with explained(f"Deleting {version}"):
                    self._folder(version).rename(aside)
            for left in self._models.glob(f"{ASIDE}*"):
                shutil.rmtree(left, ignore_errors=True)
        return deleted

    def _is_usable(self, version: str) -> bool:
        try:
            load_model(self.source(version))
        except (UnknownVersionError, WeightsError):
            return False
        return True

    def _folder(self, version: str) -> Path:
        if not _VERSION.fullmatch(version) or version == BASE:
            raise UnknownVersionError(
                f"'{version}' is no name of a version.",
                remedy="`lidiv models list` shows those kept.",
            )
        return self._models / version

    def _pointer_path(self, channel: str) -> Path:
        if not _VERSION.fullmatch(channel):
            raise BadRequestError(f"'{channel}' is no name of a channel.")
        return self._channels / f"{channel}.json"

    def _point(self, channel: str, version: str, history: tuple[str, ...]) -> None:
        write_json(
            self._pointer_path(channel), {"version": version, "history": list(history[:_HISTORY])}
        )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Let one process at a time change what is kept; readers need no lock."""
        with explained("Locking the versions"):
            self._state.mkdir(parents=True, exist_ok=True)
            file = (self._state / "models.lock").open("w")
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
