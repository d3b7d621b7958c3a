"""What was measured, one JSON line for each object, safe against a crash at any moment."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from lidiv_backend.clicks import Click
from lidiv_backend.errors import DataError
from lidiv_backend.evaluation.protocols import Action, ProtocolSettings, Step, Trace

#: Name of the file in a folder of results.
FILE_NAME = "results.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunKey:
    """What one run was about; two runs with the same key and settings are the same run."""

    method: str
    data_set: str
    protocol: str
    image: str
    object: str
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One object, segmented once.

    Parameters
    ----------
    key
        Method, data set, protocol, image, object and seed.
    settings
        Hash of all else that decides the outcome, see `settings_hash`.
    version
        Of the method: its weights or parameters.
    index
        Which image of the set.
    height, width
        Of the image, pixels.
    area
        Of the object, pixels.
    trace
        What happened.
    """

    key: RunKey
    settings: str
    version: str
    index: int
    height: int
    width: int
    area: int
    trace: Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A record, or a run on it, that could not be measured.

    Parameters
    ----------
    data_set, image
        Where.
    method, object
        Empty where the data are at fault whatever the method.
    reason
        For people.
    defect
        True where not the data are at fault but a method's code.
    protocol, seed, settings
        Of the run, as in its `Result`; empty where the data are at fault, and in files of earlier
        versions, which did not write them down.
    """

    data_set: str
    image: str
    reason: str
    method: str = ""
    object: str = ""
    defect: bool = False
    protocol: str = ""
    seed: int = 0
    settings: str = ""

    @property
    def key(self) -> RunKey:
        """What the run was about."""
        return RunKey(
            method=self.method,
            data_set=self.data_set,
            protocol=self.protocol,
            image=self.image,
            object=self.object,
            seed=self.seed,
        )

    @property
    def run(self) -> str:
        """Method, protocol and seed, for people; empty where the data are at fault."""
        return f"{self.method}, {self.protocol}, seed {self.seed}" if self.protocol else self.method


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodEntry:
    """A method that ran, and how to have it again.

    Parameters
    ----------
    label, source, longest_side
        As in `lidiv_backend.evaluation.methods.MethodSpec`.
    version
        Weights or parameters.
    about
        How it was trained, or its parameters, for people.
    machine
        Where it ran.
    """

    label: str
    source: str
    longest_side: int | None
    version: str
    about: str
    machine: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSetEntry:
    """A data set that was used, and how to open it again.

    Parameters
    ----------
    name
        As in the results.
    spec, split, data
        As `lidiv_backend.evaluation.datasets.open_data_set` takes them.
    images
        How many images it has.
    """

    name: str
    spec: str
    split: str | None
    data: str | None
    images: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingsEntry:
    """Which settings of a method, data set and protocol were asked for, see `Contents.latest`."""

    method: str
    data_set: str
    protocol: str
    settings: str


Entry = Result | Problem | MethodEntry | DataSetEntry | SettingsEntry

_KINDS: dict[str, type[Entry]] = {
    "result": Result,
    "problem": Problem,
    "method": MethodEntry,
    "data set": DataSetEntry,
    "settings": SettingsEntry,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What a folder of results holds.

    Parameters
    ----------
    results
        Of one key and settings the last; in the order in which they ran.
    problems
        Records that could not be measured, each once. A run that failed is left out where it went
        well later, or where other settings, or weights, were asked for last.
    methods, data_sets
        Of one name the last.
    settings
        Of each method, data set and protocol the last.
    """

    results: tuple[Result, ...] = ()
    problems: tuple[Problem, ...] = ()
    methods: tuple[MethodEntry, ...] = ()
    data_sets: tuple[DataSetEntry, ...] = ()
    settings: tuple[SettingsEntry, ...] = ()

    def latest(self) -> tuple[Result, ...]:
        """Leave out what was measured with other settings, or weights, than asked for last."""
        wanted = set(self.settings)
        return tuple(result for result in self.results if _settings_of(result) in wanted)


def _settings_of(run: Result | Problem) -> SettingsEntry:
    return SettingsEntry(
        method=run.key.method,
        data_set=run.key.data_set,
        protocol=run.key.protocol,
        settings=run.settings,
    )


def _to_line(entry: Entry) -> bytes:
    kind = next(name for name, class_ in _KINDS.items() if isinstance(entry, class_))
    text = json.dumps({"kind": kind, **asdict(entry)}, separators=(",", ":"), allow_nan=False)
    return text.encode() + b"\n"


def _from_line(line: str) -> Entry:
    parsed: dict[str, Any] = json.loads(line)
    class_ = _KINDS[parsed.pop("kind")]
    if class_ is not Result:
        return class_(**parsed)
    trace = parsed.pop("trace")
    key = RunKey(**parsed.pop("key"))
    return Result(
        key=key,
        trace=Trace(
            clicks=tuple(Click(**click) for click in trace["clicks"]),
            steps=tuple(Step(**step) for step in trace["steps"]),
            embed_seconds=trace["embed_seconds"],
            actions=tuple(Action(**action) for action in trace["actions"]),
            # Earlier versions did not write it down.
            stop_at=trace.get("stop_at", ProtocolSettings().stop_at),
        ),
        **parsed,
    )


def read_results(folder: Path) -> Contents:
    """Read what a folder holds; nothing where there is none.

    A line that was cut off by a crash is left out.

    Raises
    ------
    DataError
        If a line is not what `ResultLog` writes.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return Contents()
    results: dict[tuple[RunKey, str], Result] = {}
    # A record may have several reasons, a run that failed has its last one.
    problems: dict[tuple[RunKey, str, str], Problem] = {}
    methods: dict[str, MethodEntry] = {}
    data_sets: dict[str, DataSetEntry] = {}
    settings: dict[tuple[str, str, str], SettingsEntry] = {}
    text = path.read_text(encoding="utf-8")
    for number, line in enumerate(text[: text.rfind("\n") + 1].split("\n")[:-1], start=1):
        try:
            entry = _from_line(line)
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"Line {number} of {path} is not a result: {error!r}.",
                remedy="Delete that line or write to another folder.",
            ) from error
        if isinstance(entry, Result):
            # Deleted first, so that the order is that of the last run.
            results.pop((entry.key, entry.settings), None)
            results[entry.key, entry.settings] = entry
            problems.pop((entry.key, entry.settings, ""), None)
            # Earlier versions wrote down neither protocol nor seed nor settings of what failed.
            problems.pop((replace(entry.key, protocol="", seed=0), "", ""), None)
        elif isinstance(entry, Problem):
            reason = "" if entry.method else entry.reason
            problems[entry.key, entry.settings, reason] = entry
        elif isinstance(entry, MethodEntry):
            methods[entry.label] = entry
        elif isinstance(entry, DataSetEntry):
            data_sets[entry.name] = entry
        else:
            settings[entry.method, entry.data_set, entry.protocol] = entry
    wanted = set(settings.values())
    return Contents(
        results=tuple(results.values()),
        problems=tuple(
            problem
            for problem in problems.values()
            if not problem.settings or _settings_of(problem) in wanted
        ),
        methods=tuple(methods.values()),
        data_sets=tuple(data_sets.values()),
        settings=tuple(settings.values()),
    )


class ResultLog:
    """Appends results to a folder; what `append` returned from survives a crash.

    Parameters
    ----------
    folder
        Made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / FILE_NAME
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        self._file = self._path.open("a+b")
        # A crash may have left half a line: what follows must not be glued to it.
        length = self._file.seek(0, os.SEEK_END)
        if length:
            self._file.seek(0)
            kept = self._file.read().rfind(b"\n") + 1
            self._file.truncate(kept)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()

    def append(self, entries: Iterable[Entry]) -> None:
        """Write entries and wait until the disk has them."""
        if self._file is None:
            raise RuntimeError("ResultLog is used as a context manager")
        for entry in entries:
            self._file.write(_to_line(entry))
        self._file.flush()
        os.fsync(self._file.fileno())
