"""The folder of a training run: its checkpoint and its log."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lidiv_backend.errors import BadRequestError

_NOTE = "phase.json"


@dataclass(frozen=True, kw_only=True)
class CheckpointNote:
    """What a checkpoint says of itself.

    Parameters
    ----------
    phase
        Number of the phase, from 0.
    step
        Steps of this phase that were done.
    seconds
        Time that they took, with the phases before.
    made_for
        What has to be the same for the states to fit: architectures and number of processes.
    """

    phase: int
    step: int
    seconds: float
    made_for: Mapping[str, Any] = field(default_factory=dict)


class CheckpointFolder:
    """The last checkpoint of a run; a new one is written aside and renamed.

    Parameters
    ----------
    run
        Folder of the run.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self.path = run / "checkpoint"
        #: Where the next one is written.
        self.aside = run / "checkpoint.part"
        self._old = run / "checkpoint.old"

    @property
    def exists(self) -> bool:
        """Whether there is a checkpoint, perhaps one to `recover`."""
        return any((folder / _NOTE).is_file() for folder in (self.path, self._old))

    def clear_aside(self) -> None:
        """Make room for the next one."""
        if self.aside.exists():
            shutil.rmtree(self.aside)

    def commit(self, note: CheckpointNote) -> None:
        """Put what was written aside in the place of the last one."""
        (self.aside / _NOTE).write_text(json.dumps(vars(note)))
        shutil.rmtree(self._old, ignore_errors=True)
        if self.path.exists():
            self.path.rename(self._old)
        self.aside.rename(self.path)
        shutil.rmtree(self._old, ignore_errors=True)

    def recover(self) -> None:
        """Repair what a crash between the two renames left."""
        if not (self.path / _NOTE).is_file() and (self._old / _NOTE).is_file():
            shutil.rmtree(self.path, ignore_errors=True)
            self._old.rename(self.path)

    def read(self, *, made_for: Mapping[str, Any]) -> CheckpointNote:
        """Read what the checkpoint says of itself.

        Parameters
        ----------
        made_for
            What it has to fit.

        Raises
        ------
        BadRequestError
            If there is none, it is damaged, or it does not fit.
        """
        try:
            note = CheckpointNote(**json.loads((self.path / _NOTE).read_text()))
        except FileNotFoundError:
            raise BadRequestError(
                f"There is no checkpoint in {self.run} to resume from.",
                remedy="Leave --resume away, or name the folder of the run.",
            ) from None
        except (OSError, ValueError, TypeError) as error:
            raise BadRequestError(
                f"The checkpoint in {self.run} is damaged ({error}).", remedy="Train anew."
            ) from error
        for what, value in note.made_for.items():
            if what in made_for and made_for[what] != value:
                raise BadRequestError(
                    f"The checkpoint in {self.run} was made with {what} {value}, which now is "
                    f"{made_for[what]}.",
                    remedy="Resume with the same settings, or train in another folder.",
                )
        return note


class RunLog:
    """``log.jsonl`` of a run: a row of training or of validation a line.

    Parameters
    ----------
    run
        Folder of the run.
    """

    def __init__(self, run: Path) -> None:
        self.path = run / "log.jsonl"

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row."""
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """All rows; a last one that was cut off by a crash is left out."""
        rows = []
        for line in self.path.read_text().splitlines() if self.path.exists() else ():
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
        return rows

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Drop the other rows: those of steps that will be done again, for one."""
        rows = [row for row in self.rows() if wanted(row)]
        aside = self.path.with_suffix(".part")
        aside.write_text("".join(json.dumps(row) + "\n" for row in rows))
        aside.replace(self.path)
