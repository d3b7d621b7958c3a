"""A training that may not take as much memory as it needs: it fails, says why, and harms nobody."""

from __future__ import annotations

from pathlib import Path

from lidiv_backend.learning.registry import BASE, SHARED, ModelRegistry
from lidiv_backend.learning.runs import RunQueue, RunState
from lidiv_backend.learning.settings import LearningSettings
from lidiv_backend.learning.store import Store
from lidiv_backend.learning.worker import StateFolders, Worker
from tests import tiny
from tests.learning.lab import Lab


def test_a_lack_of_memory_is_told_on_the_run(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'lidiv.sqlite'}")
    lab, queue = Lab(store), RunQueue(store)
    for task in range(4):
        lab.accept(task)
    preset = tiny.saved(tmp_path / "preset", tiny.description(heads=2, ranked=True))
    models = ModelRegistry(tmp_path / "state", base=preset)
    worker = Worker(
        store=store,
        queue=queue,
        registry=models,
        folders=StateFolders(state=tmp_path / "state"),
        # Enough for Python, and for no library of models.
        settings=LearningSettings(after=1, memory_bytes=100 * 2**20, device="cpu", threads=1),
        fetch=lab.fetch,
    )
    assert worker.step()
    (run,) = queue.runs()
    log = (tmp_path / "state" / "runs" / str(run.id) / "process.log").read_text()
    assert run.state is RunState.FAILED, log
    assert "not enough memory" in run.message, log
    assert "LIDIV_LEARN_MEMORY_BYTES" in run.message
    assert models.pointer(SHARED).version == BASE
    assert models.versions() == []
    store.close()
