"""Whose turn it is to compute: few at a time, clicks before images, people before the background.

Clicks do not go before images for ever, or under load nobody would get a first mask: they have a
head start.

Threads that all enter torch at once take each other's cores, and a click would wait until the image
of somebody else is embedded. So they queue: whoever answers a request says so for a block of code
(`asking`), and what computes takes a `turn`. Without somebody who asks, nothing is limited.

An annotator who clicks again while the click before is still waiting only wants the newer one
answered. The older one is *overtaken*: it leaves the queue, by `OvertakenError`.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from lidiv_backend.errors import LidivError
from lidiv_backend.observing import stage

#: An image waits until so many requests that came after it have been served, and no longer.
HEAD_START = 8

_Value = TypeVar("_Value")


class Step(StrEnum):
    """What can be computed in one go; nothing interrupts it."""

    PROPOSE = "propose"
    EMBED = "embed"


class OvertakenError(LidivError):
    """The annotator has clicked again: nobody waits for this answer."""

    status = 409
    kind = "overtaken"


class Asker:
    """A request that is being answered.

    Parameters
    ----------
    turns
        The queue that its computations wait in; None for no queue.
    urgent
        Whether a person waits for it.
    """

    def __init__(self, turns: Turns | None = None, *, urgent: bool = True) -> None:
        self.turns = turns
        self.urgent = urgent
        #: When its image came to the queue, for the click on it, which has then waited already.
        self.came: int | None = None
        self._lock = threading.Lock()
        self._overtaken = False
        self._wake: list[Callable[[], None]] = []

    @property
    def overtaken(self) -> bool:
        """Whether its answer is not wanted any more."""
        return self._overtaken

    def overtake(self) -> None:
        """Say that its answer is not wanted any more."""
        with self._lock:
            self._overtaken = True
            wake = list(self._wake)
        for call in wake:
            call()

    def in_background(self) -> Asker:
        """Make one for work that this request leaves behind, and that nobody waits for."""
        return Asker(self.turns, urgent=False)

    @contextmanager
    def woken(self, call: Callable[[], None]) -> Iterator[None]:
        """Have a function called if it is overtaken during this block, or was before."""
        with self._lock:
            self._wake.append(call)
            overtaken = self._overtaken
        if overtaken:
            call()
        try:
            yield
        finally:
            with self._lock:
                self._wake.remove(call)


_asker: ContextVar[Asker | None] = ContextVar("asker", default=None)


def current_asker() -> Asker | None:
    """Return whose request this thread answers."""
    return _asker.get()


@contextmanager
def asking(asker: Asker | None) -> Iterator[None]:
    """Compute for somebody in this block; None for nobody, without a queue."""
    token = _asker.set(asker)
    try:
        yield
    finally:
        _asker.reset(token)


def require_not_overtaken() -> None:
    """Go on only if the answer is still wanted.

    Raises
    ------
    OvertakenError
        If it is not.
    """
    asker = _asker.get()
    if asker is not None and asker.overtaken:
        raise OvertakenError("The annotator has clicked again in the meantime.")


def result_of(future: Future[_Value]) -> _Value:
    """Wait for what another thread computes.

    Raises
    ------
    OvertakenError
        As soon as the answer is not wanted any more.
    """
    asker = _asker.get()
    if asker is None:
        return future.result()
    ready = threading.Event()
    future.add_done_callback(lambda _: ready.set())
    with asker.woken(ready.set):
        ready.wait()
    if not future.done():
        require_not_overtaken()
    return future.result()


@contextmanager
def turn(step: Step, key: str = "") -> Iterator[None]:
    """Compute in this block, when it is this thread's turn.

    Parameters
    ----------
    step
        What.
    key
        Of the image, so that who waits for the same one can hurry it; see `hurrying`.

    Raises
    ------
    OvertakenError
        If this is about clicks, and the annotator has clicked again. An image is embedded
        nevertheless: the newer click needs it, too.
    """
    asker = _asker.get()
    if asker is None or asker.turns is None:
        yield
        return
    with asker.turns.take(step, key, asker):
        yield


@contextmanager
def hurrying(key: str) -> Iterator[None]:
    """Lend one's own urgency, in this block, to whoever is about to embed the same image."""
    asker = _asker.get()
    if asker is None or asker.turns is None or not asker.urgent:
        yield
        return
    with asker.turns.hurry(key):
        yield


@dataclass(frozen=True, kw_only=True, eq=False)
class _Place:
    step: Step
    urgent: bool
    key: str
    order: int


class Turns:
    """The queue in front of the networks.

    People go before what nobody waits for. Among them, who came first, but that clicks have a head
    start before images, see `HEAD_START`. Embedding never takes the last place, so that a click
    waits for no image at all where there are two or more places; where there is one, it waits for
    one image at most, since no two go one after the other while a click waits.

    Parameters
    ----------
    places
        How many compute at a time.
    """

    def __init__(self, places: int = 2) -> None:
        self._places = places
        self._changed = threading.Condition()
        self._order = itertools.count()
        self._waiting: list[_Place] = []
        self._running: Counter[Step] = Counter()
        self._last = Step.PROPOSE
        self._hurried: Counter[str] = Counter()

    def waiting(self) -> dict[Step, int]:
        """Count who waits, by step."""
        with self._changed:
            counts = Counter(place.step for place in self._waiting)
        return {step: counts[step] for step in Step}

    @contextmanager
    def take(self, step: Step, key: str, asker: Asker) -> Iterator[None]:
        """Compute in this block; see `turn`."""
        self._enter(step, key, asker)
        try:
            yield
        finally:
            with self._changed:
                self._running[step] -= 1
                self._changed.notify_all()

    @contextmanager
    def hurry(self, key: str) -> Iterator[None]:
        """Make an image as urgent as those that annotators wait for; see `hurrying`."""
        with self._changed:
            self._hurried[key] += 1
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._hurried[key] -= 1
                if not self._hurried[key]:
                    del self._hurried[key]

    def _enter(self, step: Step, key: str, asker: Asker) -> None:
        may_leave = step is Step.PROPOSE
        order = next(self._order)
        if step is Step.PROPOSE and asker.came is not None:
            order, asker.came = asker.came, None
        place = _Place(step=step, urgent=asker.urgent, key=key, order=order)
        with stage("wait"), asker.woken(self._look_again), self._changed:
            self._waiting.append(place)
            try:
                self._changed.wait_for(
                    lambda: (may_leave and asker.overtaken) or self._is_next(place)
                )
                if may_leave and asker.overtaken:
                    raise OvertakenError("The annotator has clicked again in the meantime.")
                self._running[step] += 1
                self._last = step
                if step is Step.EMBED:
                    asker.came = order
            finally:
                self._waiting.remove(place)
                # Another place may be free for the next one.
                self._changed.notify_all()

    def _look_again(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _is_next(self, place: _Place) -> bool:
        able = [other for other in self._waiting if self._is_free(other.step)]
        return place in able and place is min(able, key=self._rank)

    def _is_free(self, step: Step) -> bool:
        if self._running.total() >= self._places:
            return False
        return step is not Step.EMBED or self._running[step] < max(self._places - 1, 1)

    def _rank(self, place: _Place) -> tuple[bool, bool, int]:
        urgent = place.urgent or place.key in self._hurried
        if place.step is Step.PROPOSE:
            return not urgent, False, place.order
        return not urgent, self._last is Step.EMBED, place.order + HEAD_START


class LatestClicks:
    """Knows the latest request of each interaction, and lets it overtake the one before."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._latest: dict[Hashable, tuple[int, Asker]] = {}

    @contextmanager
    def answering(self, key: Hashable, clicks: int) -> Iterator[None]:
        """Answer a request in this block; the one before with the same key is overtaken.

        Parameters
        ----------
        key
            Says which interaction it is.
        clicks
            How many clicks there are by now. A request with fewer than the latest was held up on
            its way: it overtakes nobody.
        """
        asker = current_asker() or Asker()
        with self._lock:
            before = self._latest.get(key)
            is_latest = before is None or clicks >= before[0]
            if is_latest:
                self._latest[key] = (clicks, asker)
        # Outside of the lock: whoever is woken may well be on the way out of here.
        if is_latest and before is not None:
            before[1].overtake()
        try:
            with asking(asker):
                yield
        finally:
            with self._lock:
                if is_latest and self._latest.get(key, (0, None))[1] is asker:
                    del self._latest[key]
