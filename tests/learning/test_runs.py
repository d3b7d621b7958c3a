from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from lidiv_backend.errors import BadRequestError
from lidiv_backend.learning.runs import MAX_ATTEMPTS, RunCause, RunQueue, RunState
from lidiv_backend.learning.store import Store
from tests.learning.postgres import postgres_server


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def database(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path_factory.mktemp('database') / 'lidiv.sqlite'}"
        return
    with postgres_server() as url:
        yield url


@pytest.fixture
def stores(database: str) -> Iterator[list[Store]]:
    """Two of them, as two processes have them, without any run."""
    from sqlalchemy import delete

    from lidiv_backend.learning.schema import TrainingRunRow

    opened = [Store(database), Store(database)]
    opened[0].write(lambda session: session.execute(delete(TrainingRunRow)))
    yield opened
    for store in opened:
        store.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queues(stores: list[Store], clock: Clock) -> list[RunQueue]:
    return [RunQueue(store, lease_seconds=60, clock=clock) for store in stores]


def test_one_run_of_a_channel_waits_or_runs(queues: list[RunQueue]) -> None:
    first = queues[0].enqueue("shared", RunCause.BUTTON, project="1.100")
    assert (first.state, first.project, first.cause) == (RunState.QUEUED, "1.100", "button")
    assert queues[1].enqueue("shared", RunCause.ANNOTATIONS) == first
    other = queues[1].enqueue("project-1.100", RunCause.BUTTON)
    assert other.id != first.id
    claimed = queues[0].claim("a")
    assert claimed is not None
    assert queues[0].enqueue("shared", RunCause.BUTTON).id == first.id
    assert queues[0].finish(first.id, "a", state=RunState.DONE, message="fine")
    assert queues[0].enqueue("shared", RunCause.BUTTON).id > first.id


def test_the_oldest_is_claimed_first_and_only_once(queues: list[RunQueue]) -> None:
    numbers = [queues[0].enqueue(f"c{n}", RunCause.BUTTON).id for n in range(3)]
    claimed = [queue.claim(owner) for queue, owner in zip(queues, "ab", strict=True)]
    assert [run.id for run in claimed if run] == numbers[:2]
    assert claimed[0] is not None
    assert (claimed[0].state, claimed[0].owner) == (RunState.RUNNING, "a")
    assert queues[1].claim("b", run=numbers[0]) is None
    assert queues[1].claim("b", run=numbers[2]) is not None
    assert queues[0].claim("a") is None


def test_many_workers_at_once_get_each_run_once(queues: list[RunQueue]) -> None:
    numbers = {queues[0].enqueue(f"c{n}", RunCause.BUTTON).id for n in range(8)}

    def work(worker: int) -> list[int]:
        queue, found = queues[worker % 2], []
        # A claim that lost a race gives nothing, though something may be left.
        while any(run.state is RunState.QUEUED for run in queue.runs(limit=50)):
            run = queue.claim(f"w{worker}")
            if run is not None:
                found.append(run.id)
        return found

    with ThreadPoolExecutor(4) as pool:
        claimed = [number for found in pool.map(work, range(4)) for number in found]
    assert sorted(claimed) == sorted(numbers)


def test_enqueued_by_many_at_once_it_is_one_run(queues: list[RunQueue]) -> None:
    with ThreadPoolExecutor(8) as pool:
        runs = pool.map(lambda n: queues[n % 2].enqueue("c", RunCause.BUTTON).id, range(16))
    assert len(set(runs)) == 1


def test_who_gives_no_sign_of_life_loses_the_run(queues: list[RunQueue], clock: Clock) -> None:
    number = queues[0].enqueue("c", RunCause.BUTTON).id
    assert queues[0].claim("a") is not None
    clock.pass_(50)
    assert queues[0].beat(number, "a", stage="training", progress={"step": 7})
    clock.pass_(50)
    assert queues[1].claim("b") is None
    clock.pass_(11)
    taken = queues[1].claim("b")
    assert taken is not None
    assert (taken.attempts, taken.stage, taken.progress) == (2, "training", {"step": 7})
    # The first worker was only slow; what it does now must not count.
    assert not queues[0].beat(number, "a")
    assert not queues[0].finish(number, "a", state=RunState.DONE, message="late")
    assert queues[0].run(number).state is RunState.RUNNING
    assert queues[1].finish(number, "b", state=RunState.DONE, message="fine", promoted=True)
    done = queues[0].run(number)
    assert (done.state, done.message, done.promoted, done.owner) == ("done", "fine", True, None)
    assert done.started_at is not None
    assert done.finished_at is not None


def test_a_run_that_kills_its_workers_is_given_up(queues: list[RunQueue], clock: Clock) -> None:
    number = queues[0].enqueue("c", RunCause.BUTTON).id
    for _ in range(MAX_ATTEMPTS):
        assert queues[0].claim("a") is not None
        clock.pass_(61)
    assert queues[0].claim("a") is None
    failed = queues[0].run(number)
    assert failed.state is RunState.FAILED
    assert "too little memory" in failed.message
    assert queues[0].enqueue("c", RunCause.BUTTON).id != number


def test_a_worker_that_is_stopped_gives_the_run_back(queues: list[RunQueue]) -> None:
    number = queues[0].enqueue("c", RunCause.BUTTON).id
    for _ in range(MAX_ATTEMPTS + 2):
        assert queues[0].claim("a") is not None
        assert queues[0].release(number, "a")
    assert queues[0].run(number).attempts == 0
    assert queues[1].claim("b") is not None


def test_the_last_runs_are_found(queues: list[RunQueue]) -> None:
    queue = queues[0]
    assert queue.last("c") is None
    first = queue.enqueue("c", RunCause.BUTTON)
    queue.claim("a")
    queue.beat(first.id, "a", snapshot="s1", base_version="base", candidate="v1")
    assert queue.versions_in_work() == {"base", "v1"}
    queue.finish(first.id, "a", state=RunState.DONE, message="")
    second = queue.enqueue("c", RunCause.BUTTON)
    queue.claim("a")
    queue.finish(second.id, "a", state=RunState.FAILED, message="")
    last, done = queue.last("c"), queue.last("c", state=RunState.DONE)
    assert last is not None
    assert done is not None
    assert (last.id, done.id, done.snapshot) == (second.id, first.id, "s1")
    assert [run.id for run in queue.runs()] == [second.id, first.id]
    assert queue.versions_in_work() == set()
    with pytest.raises(BadRequestError):
        queue.run(0)


def test_all_of_the_store_is_there_on_this_database(stores: list[Store], tmp_path: Path) -> None:
    from tests.learning.lab import Lab

    lab = Lab(stores[0])
    lab.accept(0)
    lab.accept(1, was_cancelled=True)
    found = list(stores[1].accepted_annotations(None))
    assert [annotation.task for annotation in found] == [0]
    stores[0].keep_image("1.1", 5, "/x", "d1")
    stores[0].keep_image("1.1", 5, "/x", "d2")
    assert stores[1].image_digest("1.1", 5, "/x") == "d2"
    assert stores[1].image_digest("1.1", 6, "/x") is None
