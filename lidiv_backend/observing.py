"""What goes on inside, told to whoever measures it.

The code that does the work says what it is at, and knows nothing of metrics; without an observer,
which is chosen for a block of code and the thread that runs it, saying so costs next to nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

#: From an image's address to the answer for a click.
STAGES = ("fetch", "decode", "wait", "embed", "propose", "select", "encode")


class Observer(Protocol):
    """Measures; called from many threads."""

    def stage_took(self, stage: str, seconds: float) -> None:
        """Take note that one of `STAGES` has ended, well or not."""

    def cache_asked(self, cache: str, *, hit: bool) -> None:
        """Take note of whether a cache had what was asked for."""

    def click_dropped(self) -> None:
        """Take note of a click that a newer one has overtaken."""


_observer: ContextVar[Observer | None] = ContextVar("observer", default=None)


def current_observer() -> Observer | None:
    """Return who measures here, for work that is handed to another thread."""
    return _observer.get()


@contextmanager
def observed_by(observer: Observer | None) -> Iterator[None]:
    """Tell an observer what happens in this block; None for nobody."""
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)


@contextmanager
def stage(name: str, *, settle: Callable[[], None] | None = None) -> Iterator[None]:
    """Measure a block.

    Parameters
    ----------
    name
        One of `STAGES`.
    settle
        Waits for what the block set going, where somebody measures: a GPU works behind one's back.
    """
    observer = _observer.get()
    if observer is None:
        yield
        return
    began = time.perf_counter()
    try:
        yield
        if settle is not None:
            settle()
    finally:
        observer.stage_took(name, time.perf_counter() - began)


def cache_asked(cache: str, *, hit: bool) -> None:
    """Say whether a cache had what was asked for."""
    observer = _observer.get()
    if observer is not None:
        observer.cache_asked(cache, hit=hit)


def click_dropped() -> None:
    """Say that a click was not answered, since a newer one has overtaken it."""
    observer = _observer.get()
    if observer is not None:
        observer.click_dropped()
