"""A cache that is bounded in bytes and computes each value once."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

from lidiv_backend.observing import cache_asked
from lidiv_backend.turns import OvertakenError, require_not_overtaken, result_of

_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class _Entry(Generic[_Value]):
    value: _Value
    size: int
    made: float


class BoundedCache(Generic[_Key, _Value]):
    """Keeps what was used last, up to a number of bytes; for many threads.

    Threads that ask for the same missing key wait for the one that came first, which computes
    without holding the lock. If it fails, all of them get its error, and nothing is kept. If it
    gives up because nobody wants its own answer any more, one of them computes instead.

    Parameters
    ----------
    max_bytes
        What is kept altogether. A value larger than this is returned and not kept.
    max_age
        Seconds after which a value is computed anew; None for never.
    name
        What observers are told that it is called; they are told nothing without one.
    clock
        Seconds that only grow; for tests.
    """

    def __init__(
        self,
        *,
        max_bytes: int,
        max_age: float | None = None,
        name: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_bytes = max_bytes
        self._max_age = max_age
        self._name = name
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: OrderedDict[_Key, _Entry[_Value]] = OrderedDict()
        self._pending: dict[_Key, Future[_Value]] = {}
        self._bytes = 0

    def __len__(self) -> int:
        with self._lock:
            return len(self._entries)

    @property
    def size(self) -> int:
        """Bytes that are kept now."""
        with self._lock:
            return self._bytes

    def get(self, key: _Key) -> _Value | None:
        """Return what is kept under a key, or None."""
        with self._lock:
            entry = self._fresh(key)
            return None if entry is None else entry.value

    def get_or_compute(
        self, key: _Key, compute: Callable[[], _Value], *, size_of: Callable[[_Value], int]
    ) -> _Value:
        """Return what is kept under a key, computing it if need be.

        Parameters
        ----------
        key
            Says everything that the value depends on.
        compute
            Called at most once for threads that ask together.
        size_of
            Bytes of a value.
        """
        while True:
            with self._lock:
                entry = self._fresh(key)
                future = self._pending.get(key)
                mine = entry is None and future is None
                if mine:
                    future = self._pending[key] = Future()
            if self._name:
                # Who waits for another one's computation computes nothing, but does not find it.
                cache_asked(self._name, hit=entry is not None)
            if entry is not None:
                return entry.value
            assert future is not None  # noqa: S101 - one of the three is there
            if mine:
                return self._compute(key, compute, size_of, future)
            try:
                return result_of(future)
            except OvertakenError:
                # Was it this one, or the one that computes?
                require_not_overtaken()

    def _compute(
        self,
        key: _Key,
        compute: Callable[[], _Value],
        size_of: Callable[[_Value], int],
        future: Future[_Value],
    ) -> _Value:
        try:
            value = compute()
            self._keep(key, value, size_of(value))
        except BaseException as error:
            with self._lock:
                del self._pending[key]
            future.set_exception(error)
            raise
        with self._lock:
            del self._pending[key]
        future.set_result(value)
        return value

    def put(self, key: _Key, value: _Value, *, size: int) -> None:
        """Keep a value that others may have had under this key before."""
        self._keep(key, value, size)

    def _fresh(self, key: _Key) -> _Entry[_Value] | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        if self._max_age is not None and self._clock() - entry.made > self._max_age:
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return entry

    def _keep(self, key: _Key, value: _Value, size: int) -> None:
        with self._lock:
            if size > self._max_bytes:
                return
            if key in self._entries:
                self._drop(key)
            self._entries[key] = _Entry(value, size, self._clock())
            self._bytes += size
            while self._bytes > self._max_bytes:
                self._drop(next(iter(self._entries)))

    def _drop(self, key: _Key) -> None:
        self._bytes -= self._entries.pop(key).size
