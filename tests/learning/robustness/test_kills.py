"""`kill -9` of worker, trainer and server at random moments, while webhooks and runs go on."""

from __future__ import annotations

import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from lidiv_backend.learning.registry import BASE, SHARED, ModelRegistry
from lidiv_backend.learning.runs import RunQueue, RunState
from lidiv_backend.learning.store import Store
from tests.learning.robustness import service as lab
from tests.learning.robustness.service import Annotators, Service, until

VICTIMS = ("worker", "trainer", "server", "master")
#: What a run is at, as files and rows tell; `moment` waits for one of them.
STAGES = ("queued", "running", "training", "gate", "result", "end")


def stage_of(folder: Path, queue: RunQueue) -> int:
    (run,) = queue.runs(limit=1)
    place = folder / "state" / "runs" / str(run.id)
    if run.state in (RunState.DONE, RunState.FAILED):
        return STAGES.index("end")
    for name, file in (("result", "result.json"), ("gate", "stage"), ("training", "process.log")):
        if (place / file).exists():
            return STAGES.index(name)
    return STAGES.index("running" if run.state is RunState.RUNNING else "queued")


class Day:
    """Annotators at work, a server that learns, and somebody who pulls plugs."""

    def __init__(self, folder: Path, url: str, seed: int) -> None:
        self.folder = folder
        self.rng = np.random.default_rng(seed)
        self.service = Service(folder, lab.environment(folder, url))
        self.people = Annotators(self.service.url)
        self.database = f"sqlite:///{folder / 'state' / 'lidiv.sqlite'}"

    def begin(self) -> None:
        self.service.start()
        self.service.wait()
        for task in range(16):
            assert self.people.accept(task)

    def survive(self, victim: str) -> str:
        """Kill one process at a random moment, and see that all goes on; gives what happened."""
        with closing(Store(self.database)) as store:
            queue = RunQueue(store)
            assert lab.post(self.service.url, lab.event("START_TRAINING")) == 201
            at = self.moment(queue)
            killed = victim if self.service.kill(victim) else "worker"
            if killed != victim:  # it has done its work already
                until(lambda: self.service.kill("worker"), "there is a worker")
            self.check()
            if killed == "master":
                until(self.service.are_gone, "the killed server's processes end")
                self.service.start()
            for _ in range(3):
                until(self.people.do_something, "webhooks are acknowledged again")
        self.service.wait()
        until(lambda: self.service.find("worker"), "there is a worker again")
        assert lab.post(self.service.url, lab.event("START_TRAINING")) == 201
        done = lab.verdict_of(self.database)
        until(self.people.click, "a click is answered")
        self.check()
        assert done.state is RunState.DONE, f"{killed} killed at {at}: {done.message}"
        assert done.verdict
        assert done.message.startswith(("Promoted", "Kept"))
        # A person goes back, so that there is something to promote the next time, too.
        ModelRegistry(self.folder / "state", base=self.folder / "preset").promote(SHARED, BASE)
        return f"{killed} at {at}: {done.message.split(':')[0]}"

    def moment(self, queue: RunQueue) -> str:
        """Wait for a random stage and then a little more, while annotators go on."""
        wanted = int(self.rng.integers(len(STAGES)))
        until(
            lambda: self.people.do_something() and stage_of(self.folder, queue) >= wanted,
            f"the run is at {STAGES[wanted]}",
        )
        moment = time.monotonic() + self.rng.uniform(0, 0.5)
        others = threading.Thread(target=self.people.do_something)
        others.start()
        # Not to wait for anything: the moment itself is what is drawn.
        threading.Event().wait(moment - time.monotonic())
        self._others = others
        return STAGES[stage_of(self.folder, queue)]

    def check(self) -> None:
        self._others.join(lab.BOUND)
        with closing(sqlite3.connect(self.database.removeprefix("sqlite:///"))) as database:
            assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert self.people.lost(self.database) == []
        assert self.people.served <= lab.whole_versions(self.folder)

    def end(self) -> None:
        self.service.stop()


def survive(folder: Path, seed: int, kills: int) -> None:
    with lab.label_studio() as studio:
        day = Day(folder, studio.url, seed)
        try:
            day.begin()
            victims = [VICTIMS[number % len(VICTIMS)] for number in range(kills)]
            for number, victim in enumerate(day.rng.permutation(victims)):
                print(f"{number}: {day.survive(victim)}", flush=True)
        except BaseException:
            print(day.service.log.read_text()[-20_000:])
            raise
        finally:
            day.end()
        assert "placeholder" not in day.service.log.read_text()


def test_nothing_is_lost_by_five_kills(tmp_path: Path) -> None:
    survive(tmp_path, seed=0, kills=5)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(1, 11))
def test_nothing_is_lost_by_fifty_kills(tmp_path: Path, seed: int) -> None:
    survive(tmp_path, seed=seed, kills=5)
