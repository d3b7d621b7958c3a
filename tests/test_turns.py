"""The queue in front of the networks, with threads that wait for events and for nothing else."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from lidiv_backend.caching import BoundedCache
from lidiv_backend.clicks import Click
from lidiv_backend.turns import (
    HEAD_START,
    Asker,
    LatestClicks,
    OvertakenError,
    Step,
    Turns,
    asking,
    current_asker,
    hurrying,
    turn,
)
from tests import tiny

SECONDS = 60


class WatchedTurns(Turns):
    """Says who has to wait, and notes who computed in which order."""

    def __init__(self, places: int) -> None:
        super().__init__(places)
        self.blocked: queue.Queue[str] = queue.Queue()
        self.taken: list[tuple[Step, str]] = []
        self._told: set[Any] = set()

    def _is_next(self, place: Any) -> bool:
        found = super()._is_next(place)
        if not found and place not in self._told:
            self._told.add(place)
            self.blocked.put(place.key)
        return found

    @contextmanager
    def take(self, step: Step, key: str, asker: Asker) -> Iterator[None]:
        with super().take(step, key, asker):
            self.taken.append((step, key))
            yield


class Crowd:
    """Threads that take turns; those of `holding` keep theirs until they are released."""

    def __init__(self, places: int) -> None:
        self.turns = WatchedTurns(places)
        self.pool = ThreadPoolExecutor(16)
        self.release: dict[str, threading.Event] = {}

    def _ask(self, asker: Asker, step: Step, key: str, do: Callable[[], None]) -> None:
        with asking(asker), turn(step, key):
            do()

    def holding(self, step: Step, key: str) -> Future[None]:
        """Begin to compute, and return when it does."""
        began, self.release[key] = threading.Event(), threading.Event()

        def hold() -> None:
            began.set()
            assert self.release[key].wait(SECONDS)

        future = self.pool.submit(self._ask, Asker(self.turns), step, key, hold)
        assert began.wait(SECONDS)
        return future

    def queued(self, step: Step, key: str, *, asker: Asker | None = None) -> Future[None]:
        """Wait in the queue, and return when it does."""
        asker = asker or Asker(self.turns)
        future = self.pool.submit(self._ask, asker, step, key, lambda: None)
        assert self.turns.blocked.get(timeout=SECONDS) == key
        return future

    def at_once(self, step: Step, key: str) -> None:
        """Compute without having to wait for anybody."""
        future = self.pool.submit(self._ask, Asker(self.turns), step, key, lambda: None)
        future.result(SECONDS)


@pytest.fixture
def crowd_of() -> Iterator[Callable[[int], Crowd]]:
    crowds: list[Crowd] = []

    def make(places: int) -> Crowd:
        crowds.append(Crowd(places))
        return crowds[-1]

    yield make
    for crowd in crowds:
        for event in crowd.release.values():
            event.set()
        crowd.pool.shutdown()


def test_a_click_waits_for_one_embedding_at_most(crowd_of: Callable[[int], Crowd]) -> None:
    crowd = crowd_of(1)
    running = crowd.holding(Step.EMBED, "first")
    nobody = Asker(crowd.turns, urgent=False)
    waiting = [
        crowd.queued(Step.EMBED, "ahead", asker=nobody),
        crowd.queued(Step.PROPOSE, "batch", asker=nobody),
        crowd.queued(Step.EMBED, "second"),
        crowd.queued(Step.EMBED, "third"),
        crowd.queued(Step.PROPOSE, "click"),
    ]
    assert crowd.turns.waiting() == {Step.PROPOSE: 2, Step.EMBED: 3}
    crowd.release["first"].set()
    for future in (running, *waiting):
        future.result(SECONDS)
    order = [key for _, key in crowd.turns.taken]
    assert order == ["first", "click", "second", "third", "batch", "ahead"]
    assert crowd.turns.waiting() == {Step.PROPOSE: 0, Step.EMBED: 0}


def test_clicks_do_not_go_before_an_image_for_ever(crowd_of: Callable[[int], Crowd]) -> None:
    crowd = crowd_of(1)
    running = crowd.holding(Step.PROPOSE, "running")
    names = [f"click {number}" for number in range(HEAD_START + 2)]
    waiting = [crowd.queued(Step.EMBED, "image")]
    waiting += [crowd.queued(Step.PROPOSE, name) for name in names]
    crowd.release["running"].set()
    for future in (running, *waiting):
        future.result(SECONDS)
    order = [key for _, key in crowd.turns.taken]
    # Those of its head start, and not the three behind them.
    assert order == ["running", *names[: HEAD_START - 1], "image", *names[HEAD_START - 1 :]]


def test_no_two_images_go_one_after_the_other_while_a_click_waits(
    crowd_of: Callable[[int], Crowd],
) -> None:
    crowd = crowd_of(1)
    running = crowd.holding(Step.EMBED, "running")
    waiting = [crowd.queued(Step.EMBED, f"image {number}") for number in range(2)]
    # So long ago that the images have waited enough.
    for _ in range(HEAD_START):
        next(crowd.turns._order)
    waiting += [crowd.queued(Step.PROPOSE, f"click {number}") for number in range(2)]
    crowd.release["running"].set()
    for future in (running, *waiting):
        future.result(SECONDS)
    order = [key for _, key in crowd.turns.taken]
    assert order == ["running", "click 0", "image 0", "click 1", "image 1"]


def test_whose_image_was_embedded_has_waited_already(crowd_of: Callable[[int], Crowd]) -> None:
    crowd = crowd_of(1)
    running = crowd.holding(Step.PROPOSE, "running")
    asker = Asker(crowd.turns)
    image = crowd.queued(Step.EMBED, "image", asker=asker)
    crowd.release["running"].set()
    image.result(SECONDS)
    running.result(SECONDS)
    again = crowd.holding(Step.PROPOSE, "again")
    waiting = [
        crowd.queued(Step.PROPOSE, "somebody's"),
        crowd.queued(Step.PROPOSE, "first click", asker=asker),
        crowd.queued(Step.PROPOSE, "second click", asker=asker),
    ]
    crowd.release["again"].set()
    for future in (again, *waiting):
        future.result(SECONDS)
    order = [key for _, key in crowd.turns.taken][3:]
    assert order == ["first click", "somebody's", "second click"]


def test_embeddings_never_take_the_last_place(crowd_of: Callable[[int], Crowd]) -> None:
    crowd = crowd_of(2)
    crowd.holding(Step.EMBED, "first")
    second = crowd.queued(Step.EMBED, "second")
    crowd.at_once(Step.PROPOSE, "click")
    crowd.at_once(Step.PROPOSE, "another click")
    assert not second.done()


def test_no_more_compute_at_once_than_there_are_places(crowd_of: Callable[[int], Crowd]) -> None:
    crowd = crowd_of(3)
    for key in ("one", "two", "three"):
        crowd.holding(Step.PROPOSE, key)
    fourth = crowd.queued(Step.PROPOSE, "four")
    assert not fourth.done()
    crowd.release["two"].set()
    fourth.result(SECONDS)


def test_an_overtaken_click_leaves_the_queue(crowd_of: Callable[[int], Crowd]) -> None:
    crowd = crowd_of(1)
    crowd.holding(Step.PROPOSE, "other")
    asker = Asker(crowd.turns)
    click = crowd.queued(Step.PROPOSE, "click", asker=asker)
    asker.overtake()
    with pytest.raises(OvertakenError):
        click.result(SECONDS)
    # While the other one is still computing, and without having computed anything.
    assert [key for _, key in crowd.turns.taken] == ["other"]
    assert crowd.turns.waiting()[Step.PROPOSE] == 0


def test_the_image_of_an_overtaken_click_is_embedded(crowd_of: Callable[[int], Crowd]) -> None:
    crowd = crowd_of(1)
    crowd.holding(Step.PROPOSE, "other")
    asker = Asker(crowd.turns)
    image = crowd.queued(Step.EMBED, "image", asker=asker)
    asker.overtake()
    crowd.release["other"].set()
    image.result(SECONDS)


def test_who_waits_for_an_image_hurries_it(crowd_of: Callable[[int], Crowd]) -> None:
    crowd = crowd_of(1)
    crowd.holding(Step.PROPOSE, "other")
    ahead = crowd.queued(Step.EMBED, "ahead", asker=Asker(crowd.turns, urgent=False))
    second = crowd.queued(Step.EMBED, "second")
    with asking(Asker(crowd.turns)), hurrying("ahead"):
        crowd.release["other"].set()
        ahead.result(SECONDS)
    second.result(SECONDS)
    assert [key for _, key in crowd.turns.taken] == ["other", "ahead", "second"]


def test_the_background_hurries_nobody(crowd_of: Callable[[int], Crowd]) -> None:
    crowd = crowd_of(1)
    crowd.holding(Step.PROPOSE, "other")
    ahead = crowd.queued(Step.EMBED, "ahead", asker=Asker(crowd.turns, urgent=False))
    second = crowd.queued(Step.EMBED, "second")
    with asking(Asker(crowd.turns).in_background()), hurrying("ahead"):
        crowd.release["other"].set()
        second.result(SECONDS)
    ahead.result(SECONDS)
    assert [key for _, key in crowd.turns.taken] == ["other", "second", "ahead"]


def test_a_failure_gives_its_place_back(crowd_of: Callable[[int], Crowd]) -> None:
    crowd = crowd_of(1)
    with pytest.raises(ZeroDivisionError), asking(Asker(crowd.turns)), turn(Step.PROPOSE):
        _ = 1 / 0
    crowd.at_once(Step.PROPOSE, "click")


def test_without_anybody_who_asks_there_is_no_queue() -> None:
    with turn(Step.EMBED), turn(Step.EMBED), hurrying("image"):
        assert current_asker() is None


# --- Waiting for what another thread computes ----------------------------------------------------


class Computation:
    """A value that one thread computes while others wait for it."""

    def __init__(self) -> None:
        self.cache: BoundedCache[str, str] = BoundedCache(max_bytes=100)
        self.pool = ThreadPoolExecutor(4)
        self.began, self.go_on = threading.Event(), threading.Event()
        self.follows = threading.Event()

    def first(self, error: Exception | None = None) -> Future[str]:
        def compute() -> str:
            self.began.set()
            assert self.go_on.wait(SECONDS)
            if error is not None:
                raise error
            return "first"

        future = self.pool.submit(self.cache.get_or_compute, "key", compute, size_of=len)
        assert self.began.wait(SECONDS)
        return future

    def second(self, asker: Asker) -> Future[str]:
        computation = self

        class Waiting(Asker):
            @contextmanager
            def woken(self, call: Callable[[], None]) -> Iterator[None]:
                with asker.woken(call):
                    computation.follows.set()
                    yield

            @property
            def overtaken(self) -> bool:
                return asker.overtaken

        def follow() -> str:
            with asking(Waiting()):
                return self.cache.get_or_compute("key", lambda: "second", size_of=len)

        future = self.pool.submit(follow)
        assert self.follows.wait(SECONDS)
        return future


@pytest.fixture
def computation() -> Iterator[Computation]:
    made = Computation()
    yield made
    made.go_on.set()
    made.pool.shutdown()


def test_an_overtaken_click_waits_for_nobody(computation: Computation) -> None:
    first, asker = computation.first(), Asker()
    second = computation.second(asker)
    asker.overtake()
    with pytest.raises(OvertakenError):
        second.result(SECONDS)
    computation.go_on.set()
    assert first.result(SECONDS) == "first"


def test_who_waited_for_an_overtaken_click_computes(computation: Computation) -> None:
    first = computation.first(OvertakenError("The annotator has clicked again."))
    second = computation.second(Asker())
    computation.go_on.set()
    with pytest.raises(OvertakenError):
        first.result(SECONDS)
    assert second.result(SECONDS) == "second"


def test_who_waited_gets_what_was_computed_and_other_errors(computation: Computation) -> None:
    first = computation.first(ValueError("broken"))
    second = computation.second(Asker())
    computation.go_on.set()
    for future in (first, second):
        with pytest.raises(ValueError, match="broken"):
            future.result(SECONDS)


# --- Which click is the latest -------------------------------------------------------------------


def test_a_newer_click_overtakes_the_one_before() -> None:
    latest, first, second, other = LatestClicks(), Asker(), Asker(), Asker()
    with asking(first), latest.answering("interaction", 1):
        with asking(other), latest.answering("another one", 5):
            pass
        assert not first.overtaken
        with asking(second), latest.answering("interaction", 2):
            assert first.overtaken
            assert not second.overtaken


def test_a_request_that_was_held_up_overtakes_nobody() -> None:
    latest, newer, older = LatestClicks(), Asker(), Asker()
    with asking(newer), latest.answering("interaction", 3):
        with asking(older), latest.answering("interaction", 2):
            pass
        assert not newer.overtaken
        assert not older.overtaken
    assert latest._latest == {}


def test_a_click_that_was_answered_is_not_overtaken_later() -> None:
    latest, first = LatestClicks(), Asker()
    with asking(first), latest.answering("interaction", 1):
        pass
    with latest.answering("interaction", 2):
        assert not first.overtaken
    assert latest._latest == {}


# --- The predictor -------------------------------------------------------------------------------


def test_a_predictor_takes_turns_for_what_it_computes_and_for_nothing_else() -> None:
    predictor, turns = tiny.predictor(tiny.description()), WatchedTurns(1)
    image = np.zeros((32, 48, 3), np.uint8)
    with asking(Asker(turns)):
        for _ in range(2):
            embedding = predictor.embed(image)
        predictor.predict(embedding, [Click(x=20, y=10, positive=True)])
    assert turns.taken == [(Step.EMBED, embedding.key), (Step.PROPOSE, "")]
