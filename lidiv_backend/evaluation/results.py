"""What was measured, one JSON line for each object, safe against a crash at any moment."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from lidiv_backend.clicks import Click
from lidiv_backend.errors import DataError
from lidiv_backend.evaluation.protocols import Action, Step, Trace

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
    height: int
    width: int
    area: int
    trace: Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A record that could not be measured.

    Parameters
    ----------
    data_set, image
        Where.
    method
        Empty where the data are at fault whatever the method.
    reason
        For people.
    defect
        True where not the data are at fault but a method's code.
    """

    data_set: str
    image: str
    reason: str
    method: str = ""
    defect: bool = False


def _to_line(entry: Result | Problem) -> str:
    kind = "result" if isinstance(entry, Result) else "problem"
    return json.dumps({"kind": kind, **asdict(entry)}, separators=(",", ":"), allow_nan=False)


def _from_line(line: str) -> Result | Problem:
    parsed: dict[str, Any] = json.loads(line)
    if parsed.pop("kind") == "problem":
        return Problem(**parsed)
    trace = parsed.pop("trace")
    key = RunKey(**parsed.pop("key"))
    return Result(
        key=key,
        trace=Trace(
            clicks=tuple(Click(**click) for click in trace["clicks"]),
            steps=tuple(Step(**step) for step in trace["steps"]),
            embed_seconds=trace["embed_seconds"],
            actions=tuple(Action(**action) for action in trace["actions"]),
        ),
        **parsed,
    )


def read_results(folder: Path) -> tuple[list[Result], list[Problem]]:
    """Read what a folder holds.

    A line that was cut off by a crash is left out. Of several runs with one key the last counts,
    and a problem is forgotten where a later run of the same image and method went well.

    Raises
    ------
    DataError
        If a line is not what `ResultLog` writes.
    """
    path = folder / FILE_NAME
    results: dict[tuple[RunKey, str], Result] = {}
    problems: dict[tuple[str, str, str, str], Problem] = {}
    if not path.exists():
        return [], []
    text = path.read_text(encoding="utf-8")
    for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), start=1):
        try:
            entry = _from_line(line)
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"Line {number} of {path} is not a result: {error!r}.",
                remedy="Delete that line or write to another folder.",
            ) from error
        if isinstance(entry, Result):
            results[entry.key, entry.settings] = entry
            problems = {
                key: problem
                for key, problem in problems.items()
                if not (
                    problem.defect
                    and key[:3] == (entry.key.data_set, entry.key.image, entry.key.method)
                )
            }
        else:
            problems[entry.data_set, entry.image, entry.method, entry.reason] = entry
    return list(results.values()), list(problems.values())


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

    def append(self, entries: Iterable[Result | Problem]) -> None:
        """Write entries and wait until the disk has them."""
        if self._file is None:
            raise RuntimeError("ResultLog is used as a context manager")
        for entry in entries:
            self._file.write(_to_line(entry).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def latest(results: Iterable[Result]) -> Iterator[Result]:
    """Leave out runs of settings that a later run of the same key replaced."""
    by_key: dict[RunKey, Result] = {}
    for result in results:
        by_key[result.key] = result
    yield from by_key.values()
