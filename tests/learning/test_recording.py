"""Rectangles and beginnings in the database, where every process finds them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from lidiv_backend.labelstudio.beginnings import (
    BEGUN_SECONDS,
    BOX_SECONDS,
    Begun,
    InteractionKey,
)
from lidiv_backend.labelstudio.config import Target
from lidiv_backend.labelstudio.results import PlacedBox, Prompt
from lidiv_backend.learning.recording import BeginningLog
from lidiv_backend.learning.store import Store

TARGET = Target(to_name="image", brush="brush", labels="label", label="Object")
KEY = InteractionKey(project="1.100", task=7, first_click="c1")


def box(id: str, *, x: float = 10.0) -> Prompt:
    placed = PlacedBox(id=id, x=x, y=20.0, width=30.0, height=40.0, rotation=5.0)
    return Prompt(target=TARGET, clicks=(), size=(512, 384), box=placed)


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2024, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def go_on(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def open_log(tmp_path: Path, clock: Clock) -> Callable[[], BeginningLog]:
    """Open it as another process would: all that they have in common is the database."""
    return lambda: BeginningLog(Store(f"sqlite:///{tmp_path / 'lidiv.sqlite'}"), clock=clock)


def test_another_process_finds_the_rectangles(open_log: Callable[[], BeginningLog]) -> None:
    boxes = (box("a"), box("b", x=50.0))
    open_log().keep_boxes("1.100", 7, boxes)
    assert open_log().waiting_boxes("1.100", 7) == (boxes,)
    assert open_log().waiting_boxes("1.100", 8) == ()
    assert open_log().waiting_boxes("2.100", 7) == ()


def test_a_task_without_a_number_has_its_own(open_log: Callable[[], BeginningLog]) -> None:
    log = open_log()
    log.keep_boxes("1.100", None, (box("a"),))
    assert log.waiting_boxes("1.100", None) == ((box("a"),),)
    assert log.waiting_boxes("1.100", 7) == ()


def test_rectangles_of_two_annotators_do_not_replace_each_other(
    open_log: Callable[[], BeginningLog],
) -> None:
    log = open_log()
    log.keep_boxes("1.100", 7, (box("a"),))
    log.keep_boxes("1.100", 7, (box("b"),))
    # Whoever has rectangles sends all of them each time.
    log.keep_boxes("1.100", 7, (box("a"), box("c")))
    assert log.waiting_boxes("1.100", 7) == ((box("a"), box("c")), (box("b"),))
    # Nobody knows whose were taken away.
    log.keep_boxes("1.100", 7, ())
    assert len(log.waiting_boxes("1.100", 7)) == 2
    log.keep_boxes("1.100", 7, (box("c"),))
    assert log.waiting_boxes("1.100", 7) == ((box("c"),), (box("b"),))


def test_a_rectangle_that_was_moved_is_where_it_is_now(
    open_log: Callable[[], BeginningLog],
) -> None:
    log = open_log()
    log.keep_boxes("1.100", 7, (box("a"),))
    log.keep_boxes("1.100", 7, (box("a", x=33.0),))
    assert log.waiting_boxes("1.100", 7) == ((box("a", x=33.0),),)
    log.keep_boxes("1.100", 7, ())
    assert log.waiting_boxes("1.100", 7) == ()


def test_what_was_not_touched_for_long_is_forgotten(
    open_log: Callable[[], BeginningLog], clock: Clock
) -> None:
    log = open_log()
    log.keep_boxes("1.100", 7, (box("a"),))
    log.keep_begun(KEY, Begun(box=box("a")))
    clock.go_on(BOX_SECONDS - 1)
    assert log.waiting_boxes("1.100", 7)
    clock.go_on(2)
    assert log.waiting_boxes("1.100", 7) == ()
    # Within the interaction it counts on.
    assert log.begun(KEY) == Begun(box=box("a"))
    clock.go_on(BEGUN_SECONDS)
    other = InteractionKey(project="1.100", task=7, first_click="c2")
    log.keep_begun(other, Begun())
    assert log.begun(KEY) is None
    assert log.begun(other) == Begun()


def test_the_first_one_says_what_an_interaction_began_with(
    open_log: Callable[[], BeginningLog],
) -> None:
    mine, yours = Begun(box=box("a"), others=(box("b"),)), Begun(region="r1")
    assert open_log().keep_begun(KEY, mine) == mine
    assert open_log().keep_begun(KEY, yours) == mine
    assert open_log().begun(KEY) == mine


def test_a_database_that_is_gone_costs_nobody_the_mask(
    open_log: Callable[[], BeginningLog], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = open_log()
    (tmp_path / "lidiv.sqlite").unlink()
    (tmp_path / "lidiv.sqlite").mkdir()
    log._store.close()
    with caplog.at_level(logging.ERROR):
        log.keep_boxes("1.100", 7, (box("a"),))
        assert log.waiting_boxes("1.100", 7) == ()
        assert log.keep_begun(KEY, Begun(region="r1")) == Begun(region="r1")
        assert log.begun(KEY) is None
    assert len(caplog.records) == 4
