"""Ending a run after a whole step: because time is up, or because somebody pressed Ctrl+C."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Self

import torch
from accelerate import Accelerator

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSwitch:
    """Says when to stop; as a context manager it also listens to Ctrl+C.

    A second Ctrl+C stops at once. Outside the main thread, where Python handles no signals, only
    the time counts.

    Parameters
    ----------
    seconds
        From now; None for no limit.
    """

    def __init__(self, *, seconds: float | None) -> None:
        self.interrupted = False
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True

    def is_due(self) -> bool:
        """Whether to stop now."""
        late = self._deadline is not None and time.monotonic() >= self._deadline
        return self.interrupted or late


class StopRequest(StopSwitch):
    """A switch for several processes, which stop after the same step.

    Parameters
    ----------
    accelerator
        Of these processes.
    seconds
        From now; None for no limit.
    """

    def __init__(self, accelerator: Accelerator, *, seconds: float | None) -> None:
        super().__init__(seconds=seconds)
        self._accelerator = accelerator

    def is_due(self) -> bool:
        """Whether to stop now; every process has to ask after the same step."""
        due = super().is_due()
        if self._accelerator.num_processes == 1:
            return due
        # Processes that stop after different steps would wait for each other forever.
        votes = torch.tensor(float(due), device=self._accelerator.device)
        return bool(self._accelerator.reduce(votes, reduction="sum") > 0)


def ignore_interrupts(_: int) -> None:
    """Leave Ctrl+C to the main process: for the processes that read images."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
