"""Gives memory back that is free."""

from __future__ import annotations

import ctypes
import threading

#: Seconds between two times.
PERIOD_SECONDS = 30.0


class MemoryKeeper:
    """Gives free memory back to the system now and then, in a thread of its own.

    Networks take and leave large pieces of many sizes, from many threads, between the small ones
    that caches keep. What lies free between these the C library holds on to, more and more of it.

    Parameters
    ----------
    period
        Seconds between two times.
    """

    def __init__(self, *, period: float = PERIOD_SECONDS) -> None:
        self._period = period
        self._stop = threading.Event()

    def start(self) -> None:
        """Begin, where the C library can do it (glibc)."""
        if _trim() is not None:
            threading.Thread(target=self._run, name="memory", daemon=True).start()

    def stop(self) -> None:
        """Leave it."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(self._period):
            give_back()


def give_back() -> bool:
    """Give free memory back to the system; whether there was any, or could be."""
    trim = _trim()
    return trim is not None and bool(trim(0))


def _trim() -> ctypes._NamedFuncPointer | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return None
