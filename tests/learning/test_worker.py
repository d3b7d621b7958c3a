from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from lidiv_backend.evaluation.measures import Interval
from lidiv_backend.learning.gate import Comparison, Verdict
from lidiv_backend.learning.process import Job, Outcome
from lidiv_backend.learning.registry import BASE, SHARED, ModelRegistry, channel_of
from lidiv_backend.learning.runs import MAX_ATTEMPTS, RunCause, RunQueue, RunState
from lidiv_backend.learning.settings import LearningSettings, Thresholds
from lidiv_backend.learning.store import Store, StoreError
from lidiv_backend.learning.worker import StateFolders, Worker
from lidiv_backend.model import load_model
from tests.learning.conftest import MakeWeights
from tests.learning.lab import PROJECT, Lab
from tests.learning.test_process import base_folder

SETTINGS = LearningSettings(
    steps=2, threads=1, device="cpu", after=4, poll_seconds=0.01, gate_images=2, gate_objects=1
)


def verdict(*, passed: bool) -> Verdict:
    interval = Interval(mean=-1.0, low=-2.0, high=-0.5)
    found = Comparison(
        data_set="x", images=8, objects=9, candidate=1.0, in_use=2.0, difference=interval
    )
    text = "Promoted: better." if passed else "Kept, not promoted: worse."
    return Verdict(passed=passed, text=text, held_out=found, base=None)


class Script:
    """Stands for the process of a run: writes what the test wants, and ends."""

    def __init__(self, outcome: Outcome | None, *, code: str = "pass") -> None:
        self.outcome = outcome
        self.code = code
        self.folders: list[Path] = []
        self.meanwhile: Callable[[], object] = lambda: None

    def __call__(self, folder: Path, _: LearningSettings) -> subprocess.Popen[bytes]:
        self.folders.append(folder)
        self.meanwhile()
        if self.outcome is not None:
            (folder / "result.json").write_text(json.dumps(asdict(self.outcome)))
        return subprocess.Popen([sys.executable, "-c", self.code])


@pytest.fixture
def queue(store: Store) -> RunQueue:
    return RunQueue(store)


@pytest.fixture
def models(tmp_path: Path, make_weights: MakeWeights) -> ModelRegistry:
    return ModelRegistry(tmp_path / "state", base=make_weights(0), keep=2)


@pytest.fixture
def candidate(make_weights: MakeWeights) -> Path:
    return make_weights(1)


@pytest.fixture
def make_worker(
    store: Store, queue: RunQueue, models: ModelRegistry, lab: Lab, tmp_path: Path
) -> Callable[..., Worker]:
    def make(spawn: object, **changes: object) -> Worker:
        values = {
            "store": store,
            "queue": queue,
            "registry": models,
            "folders": StateFolders(state=tmp_path / "state"),
            "settings": SETTINGS,
            "fetch": lab.fetch,
            "spawn": spawn,
        }
        return Worker(**(values | changes))  # type: ignore[arg-type]

    return make


MakeWorker = Callable[..., Worker]


def good(candidate: Path, *, passed: bool = True) -> Script:
    return Script(Outcome(weights=str(candidate), verdict=verdict(passed=passed).to_json()))


def annotate(lab: Lab, *tasks: int) -> None:
    for task in tasks:
        lab.accept(task)


def test_enough_annotations_start_a_run_and_what_is_better_goes_live(
    make_worker: MakeWorker, lab: Lab, queue: RunQueue, models: ModelRegistry, candidate: Path
) -> None:
    worker = make_worker(good(candidate))
    annotate(lab, 0, 1, 2)
    lab.accept(3, was_cancelled=True)
    assert not worker.step()
    annotate(lab, 4)
    assert worker.step()
    (run,) = queue.runs()
    version = load_model(candidate).version
    assert (run.state, run.cause, run.promoted) == (RunState.DONE, "annotations", True)
    assert (run.candidate, run.base_version) == (version, BASE)
    assert run.message == "Promoted: better."
    assert models.pointer(SHARED).version == version
    (entry,) = models.versions()
    assert entry.report["verdict"]["passed"] is True
    # The pause, and then what was learnt already, keep it quiet.
    assert not worker.step()
    impatient = make_worker(
        good(candidate), settings=SETTINGS.model_copy(update={"pause_minutes": 0})
    )
    assert not impatient.step()
    annotate(lab, 5, 6, 7, 8)
    assert not worker.step()
    assert impatient.step()
    second = queue.runs()[0]
    assert second.base_version == version


def test_what_is_not_better_is_kept_with_its_reason(
    make_worker: MakeWorker, lab: Lab, queue: RunQueue, models: ModelRegistry, candidate: Path
) -> None:
    annotate(lab, 0, 1, 2, 3)
    make_worker(good(candidate, passed=False)).step()
    (run,) = queue.runs()
    assert (run.state, run.promoted) == (RunState.DONE, False)
    assert run.message == "Kept, not promoted: worse."
    assert models.pointer(SHARED).version == BASE
    assert models.versions()[0].version == run.candidate


def test_only_what_the_model_in_use_has_learnt_is_not_new(
    make_worker: MakeWorker, lab: Lab, queue: RunQueue, make_weights: MakeWeights
) -> None:
    impatient = SETTINGS.model_copy(update={"pause_minutes": 0})
    earlier = []
    for number, passed in enumerate((False, True, False, False)):
        script = good(make_weights(number + 1), passed=passed)
        script.meanwhile = lambda script=script: earlier.append(  # type: ignore[misc]
            Job.read(script.folders[-1]).earlier
        )
        annotate(lab, *range(4 * number, 4 * number + 4))
        assert make_worker(script, settings=impatient).step()
    promoted = queue.runs()[-2]
    assert promoted.promoted
    assert earlier == [None, None, promoted.snapshot, promoted.snapshot]


def test_projects_may_learn_by_themselves(
    make_worker: MakeWorker, lab: Lab, queue: RunQueue, models: ModelRegistry, candidate: Path
) -> None:
    annotate(lab, 0, 1, 2)
    lab.project = "8.200"
    annotate(lab, 0, 1, 2, 3)
    own = make_worker(good(candidate), settings=SETTINGS.model_copy(update={"shared": False}))
    assert own.step()
    (run,) = queue.runs()
    assert (run.channel, run.project) == (channel_of("8.200"), "8.200")
    assert models.pointer(channel_of("8.200")).version != BASE
    assert models.pointer(channel_of(PROJECT)).version == BASE
    assert models.pointer(SHARED).version == BASE


def test_thresholds_of_single_projects(
    make_worker: MakeWorker, lab: Lab, queue: RunQueue, candidate: Path
) -> None:
    quick = {"8": Thresholds(after=2, pause_minutes=0)}
    annotate(lab, 0)
    together = make_worker(
        good(candidate), settings=SETTINGS.model_copy(update={"projects": quick})
    )
    assert not together.step()
    alone = make_worker(
        good(candidate), settings=SETTINGS.model_copy(update={"projects": quick, "shared": False})
    )
    lab.project = "8.200"
    annotate(lab, 0)
    assert not alone.step()
    annotate(lab, 1)
    assert alone.step()
    assert queue.runs()[0].channel == channel_of("8.200")
    # The same two start a run of the model that all share, because of their project.
    assert together.step()
    assert (queue.runs()[0].channel, queue.runs()[0].project) == (SHARED, "8.200")


def test_a_button_starts_a_run_at_once(
    make_worker: MakeWorker, lab: Lab, queue: RunQueue, candidate: Path
) -> None:
    annotate(lab, 0)
    queue.enqueue(SHARED, RunCause.BUTTON, project=PROJECT)
    assert make_worker(good(candidate)).step()


def test_a_process_that_is_killed_is_resumed_until_that_is_hopeless(
    make_worker: MakeWorker, lab: Lab, queue: RunQueue, models: ModelRegistry
) -> None:
    annotate(lab, 0, 1, 2, 3)
    killed = Script(None, code="import os; os.kill(os.getpid(), 9)")
    worker = make_worker(killed)
    for attempt in range(1, MAX_ATTEMPTS):
        assert worker.step()
        (run,) = queue.runs()
        assert (run.state, run.attempts) == (RunState.QUEUED, attempt)
    assert worker.step()
    (run,) = queue.runs()
    assert run.state is RunState.FAILED
    assert "status -9" in run.message
    assert "too little memory" in run.message
    assert len(set(killed.folders)) == 1
    assert models.versions() == []


def test_a_process_that_is_killed_once_comes_to_a_verdict(
    make_worker: MakeWorker, lab: Lab, queue: RunQueue, candidate: Path
) -> None:
    annotate(lab, 0, 1, 2, 3)
    make_worker(Script(None, code="import os; os.kill(os.getpid(), 9)")).step()
    assert make_worker(good(candidate)).step()
    (run,) = queue.runs()
    assert (run.state, run.attempts, run.promoted) == (RunState.DONE, 2, True)


def test_a_process_that_ends_without_a_word_fails_the_run(
    make_worker: MakeWorker, lab: Lab, queue: RunQueue, tmp_path: Path
) -> None:
    annotate(lab, 0, 1, 2, 3)
    script = Script(None, code="raise SystemExit(3)")
    left = tmp_path / "state" / "runs" / "1" / "training" / "checkpoint" / "weights"
    script.meanwhile = lambda: left.mkdir(parents=True)
    assert make_worker(script).step()
    (run,) = queue.runs()
    assert run.state is RunState.FAILED
    assert "status 3" in run.message
    # Otherwise a run that fails every hour fills the disk.
    assert not left.parent.exists()


def test_a_database_that_is_away_for_a_moment_does_not_end_the_training(
    make_worker: MakeWorker, lab: Lab, queue: RunQueue, candidate: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    annotate(lab, 0, 1, 2, 3)
    held: list[Any] = []
    beat = queue.beat

    def flaky(run: int, owner: str, **values: Any) -> bool:
        if "progress" in values:
            held[0].close()  # which lets the process end, perhaps after another such attempt
            raise StoreError("The database is locked.")
        return beat(run, owner, **values)

    monkeypatch.setattr(queue, "beat", flaky)
    script = good(candidate)

    def spawn(folder: Path, settings: LearningSettings) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-c", "open(0).read()"], stdin=subprocess.PIPE)
        script(folder, settings).wait()
        assert process.stdin is not None
        held.append(process.stdin)
        return process

    assert make_worker(spawn).step()
    assert queue.runs()[0].promoted


def test_an_error_of_the_process_is_told(
    make_worker: MakeWorker, lab: Lab, queue: RunQueue
) -> None:
    annotate(lab, 0, 1, 2, 3)
    make_worker(Script(Outcome(weights=None, verdict={}, error="There is nothing."))).step()
    assert queue.runs()[0].message == "There is nothing."


def test_a_person_who_rolls_back_meanwhile_is_not_overruled(
    make_worker: MakeWorker, lab: Lab, queue: RunQueue, models: ModelRegistry,
    candidate: Path, make_weights: MakeWeights,
) -> None:  # fmt: skip
    annotate(lab, 0, 1, 2, 3)
    other = models.add(make_weights(2), {})
    script = good(candidate)
    script.meanwhile = lambda: models.promote(SHARED, other)
    make_worker(script).step()
    (run,) = queue.runs()
    assert not run.promoted
    assert "another version was put in use meanwhile" in run.message
    assert models.pointer(SHARED).version == other


def test_a_worker_that_is_stopped_gives_the_run_back_and_the_next_resumes_it(
    make_worker: MakeWorker, lab: Lab, queue: RunQueue, candidate: Path
) -> None:
    annotate(lab, 0, 1, 2, 3)
    stop = threading.Event()
    waits = Script(None, code="import time; time.sleep(600)")
    waits.meanwhile = stop.set
    assert make_worker(waits, stop=stop).step()
    (run,) = queue.runs()
    assert (run.state, run.attempts) == (RunState.QUEUED, 0)
    # What came later does not change what this run learns from.
    annotate(lab, 5)
    script = good(candidate)
    assert make_worker(script).step()
    resumed = queue.run(run.id)
    assert (resumed.state, resumed.snapshot) == (RunState.DONE, run.snapshot)
    assert script.folders == waits.folders


def test_a_worker_that_lost_its_run_leaves_it_alone(
    make_worker: MakeWorker, lab: Lab, queue: RunQueue, store: Store, candidate: Path
) -> None:
    annotate(lab, 0, 1, 2, 3)
    waits = Script(None, code="import time; time.sleep(600)")
    thief = RunQueue(store, clock=lambda: queue.runs()[0].created_at.replace(year=2999))
    waits.meanwhile = lambda: thief.claim("thief")
    assert make_worker(waits).step()
    (run,) = queue.runs()
    assert (run.state, run.owner) == (RunState.RUNNING, "thief")


def test_after_a_crash_between_result_and_promotion_nothing_is_trained_again(
    make_worker: MakeWorker, lab: Lab, queue: RunQueue, models: ModelRegistry, candidate: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    annotate(lab, 0, 1, 2, 3)
    script = good(candidate)
    worker = make_worker(script)

    class Killed(BaseException):
        pass

    def die(*_: object, **__: object) -> bool:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(models, "promote", die)
        with pytest.raises(Killed):
            worker.step()
    (run,) = queue.runs()
    assert run.state is RunState.RUNNING
    late = RunQueue(lab.store, clock=lambda: run.created_at.replace(year=2999))
    again = make_worker(script, queue=late)
    assert again.step()
    assert queue.run(run.id).promoted
    assert models.pointer(SHARED).version == run.candidate
    assert len(script.folders) == 1


def test_all_of_it_with_a_real_process(
    lab: Lab, queue: RunQueue, models: ModelRegistry, store: Store, tmp_path: Path
) -> None:
    annotate(lab, *range(6))
    worker = Worker(
        store=store,
        queue=queue,
        registry=models,
        folders=StateFolders(state=tmp_path / "state"),
        settings=SETTINGS.model_copy(
            update={"base_data": base_folder(tmp_path / "base"), "poll_seconds": 1.0}
        ),
        fetch=lab.fetch,
    )
    assert worker.step()
    (run,) = queue.runs()
    log = (tmp_path / "state" / "runs" / str(run.id) / "process.log").read_text()
    assert run.state is RunState.DONE, run.message + log
    assert run.message.startswith("Kept, not promoted: only")
    assert run.candidate is not None
    model = load_model(models.source(run.candidate))
    assert model.description.training["steps_done"] == 2
    assert models.pointer(SHARED).version == BASE
