from __future__ import annotations

from pathlib import Path

from lidiv_backend.learning.gate import with_masks_of
from lidiv_backend.learning.registry import BASE, SHARED, ModelRegistry
from lidiv_backend.learning.runs import RunQueue, RunState
from lidiv_backend.learning.settings import LearningSettings
from lidiv_backend.learning.worker import StateFolders, Worker
from tests.learning.conftest import MakeWeights
from tests.learning.lab import Lab, region
from tests.learning.test_process import base_folder

IMAGES = 16


def test_a_poisoned_set_is_refused_and_the_reason_is_kept(
    lab: Lab, tmp_path: Path, make_weights: MakeWeights
) -> None:
    """Every image is submitted with the masks of the next one; all else is as it really runs."""
    for task in range(IMAGES):
        bad = with_masks_of(lab.images[task], lab.images[(task + 1) % IMAGES])
        masks = [
            part
            for number, item in enumerate(bad.objects)
            for part in region(item.mask, identity=f"region-{task}-{number}")
        ]
        lab.accept(task, masks)
    models = ModelRegistry(tmp_path / "state", base=make_weights(0))
    queue = RunQueue(lab.store)
    worker = Worker(
        store=lab.store,
        queue=queue,
        registry=models,
        folders=StateFolders(state=tmp_path / "state"),
        settings=LearningSettings(
            steps=3,
            threads=1,
            device="cpu",
            after=IMAGES,
            holdout=0.5,
            gate_images=6,
            gate_objects=1,
            base_data=base_folder(tmp_path / "base"),
            poll_seconds=1.0,
        ),
        fetch=lab.fetch,
    )
    assert worker.step()
    (run,) = queue.runs()
    assert (run.state, run.promoted) == (RunState.DONE, False)
    assert run.message.startswith("Kept, not promoted: the accepted masks fit other images as well")
    assert "Were masks and images mixed up?" in run.verdict["text"]
    assert models.pointer(SHARED).version == BASE
    # It is kept, with its report, for whoever wants to look.
    (entry,) = models.versions()
    assert entry.version == run.candidate
    assert entry.report["verdict"]["fit"]["images"] == 6
