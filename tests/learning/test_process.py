from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import pytest
import torch

from lidiv_backend.learning.process import (
    TRAINING,
    Job,
    read_outcome,
    stage_of,
    tell_scope,
    thread_environment,
    work,
)
from lidiv_backend.learning.settings import LearningSettings
from lidiv_backend.learning.snapshot import take_snapshot
from lidiv_backend.learning.vault import Vault
from lidiv_backend.model import Elsewhere, load_model
from lidiv_backend.predictor import Predictor
from lidiv_backend.scope import Scope
from lidiv_backend.training.checkpoints import CheckpointFolder
from tests import tiny
from tests.learning.conftest import MakeWeights
from tests.learning.lab import Lab


def base_folder(folder: Path) -> str:
    """A base set in the layout that most people have."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    images = tiny.PaintedSet(length=24, height=40, width=48, count=1)
    for number in range(len(images)):
        image = images[number]
        name = f"{number:02d}.png"
        cv2.imwrite(str(folder / "images" / name), image.rgb[..., ::-1])
        cv2.imwrite(str(folder / "masks" / name), image.objects[0].mask * 255)
    return f"folder:{folder}"


@pytest.fixture
def job(lab: Lab, tmp_path: Path, make_weights: MakeWeights) -> Job:
    for task in range(6):
        lab.accept(task)
    snapshot = take_snapshot(
        lab.store,
        Vault(tmp_path / "vault"),
        tmp_path / "snapshots",
        lab.fetch,
        channel="shared",
        projects=None,
        holdout=0.4,
    )
    weights = make_weights(0)
    return Job(
        in_use=str(weights),
        base=str(weights),
        vault=str(tmp_path / "vault"),
        snapshots=str(tmp_path / "snapshots"),
        snapshot=snapshot.digest,
        earlier=None,
        settings=LearningSettings(
            steps=3,
            threads=1,
            device="cpu",
            gate_images=2,
            gate_objects=1,
            base_data=base_folder(tmp_path / "base"),
        ),
    )


def test_it_trains_and_measures(job: Job, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    job.write(folder)
    assert Job.read(folder) == job
    assert stage_of(folder) == "training"
    outcome = work(folder)
    assert outcome.error == ""
    assert outcome.weights is not None
    assert load_model(outcome.weights).description.training["steps_done"] == 3
    assert "On the base set it needs" in outcome.verdict["text"]
    assert not outcome.verdict["passed"]
    assert stage_of(folder) == "gate"
    assert {"training", "training CPU", "gate", "gate CPU"} <= set(outcome.seconds)
    kept = read_outcome(folder)
    assert kept is not None
    assert kept.seconds == outcome.seconds
    # What is done is not done again.
    before = (folder / TRAINING / "log.jsonl").stat().st_mtime_ns
    assert work(folder).weights == outcome.weights
    assert (folder / TRAINING / "log.jsonl").stat().st_mtime_ns == before


def test_what_went_wrong_is_told(job: Job, tmp_path: Path) -> None:
    (tmp_path / "snapshots" / f"{job.snapshot}.json").unlink()
    folder = tmp_path / "run"
    folder.mkdir()
    job.write(folder)
    outcome = work(folder)
    assert outcome.weights is None
    assert "cannot be read" in outcome.error
    assert read_outcome(folder) == outcome


def test_a_half_written_result_is_none(tmp_path: Path) -> None:
    assert read_outcome(tmp_path) is None
    (tmp_path / "result.json").write_text(json.dumps({"weights": "x"})[:-3])
    assert read_outcome(tmp_path) is None


def test_in_a_process_of_its_own_it_steps_back_and_stops_with_a_checkpoint(
    job: Job, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    endless = job.settings.model_copy(update={"steps": 1_000_000, "nice": 7})
    Job(**{**vars(job), "settings": endless}).write(folder)
    process = subprocess.Popen(
        [sys.executable, "-m", "lidiv_backend.learning.process", str(folder)],
        env={**os.environ, **thread_environment(1)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    seen = b""
    # The progress bar says when the training is under way.
    while b"tiny-tuned" not in seen or b"it/s" not in seen:
        piece = os.read(process.stderr.fileno(), 4096)
        assert piece, seen.decode()
        seen += piece
    # The tests themselves may have been told to step back.
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert os.getpriority(os.PRIO_PROCESS, process.pid) == min(19, own + 7)
    process.send_signal(signal.SIGTERM)
    _, rest = process.communicate(timeout=120)
    assert process.returncode == 130, rest.decode()
    assert read_outcome(folder) is None
    assert CheckpointFolder(folder / TRAINING).exists


def test_it_is_told_on_how_many_images_a_candidate_answers() -> None:
    about = tiny.description(pyramid=True)
    alone = tiny.predictor(about)
    images = tiny.PaintedSet(length=4)
    described = [alone.describe(images[index].rgb) for index in range(4)]
    scope = Scope(own=torch.stack(described[:3]), others=described[3][None])
    model = alone.model
    elsewhere = Elsewhere(scope=scope, proposal=model.proposal, selection=model.selection)
    confined = Predictor(replace(model, elsewhere=elsewhere), alone._encoder, device=tiny.CPU)
    assert "answers on 3 of 4 held-out images" in tell_scope(confined, images, images=32)
    assert "answers on 2 of 2 held-out images" in tell_scope(confined, images, images=2)
    assert tell_scope(alone, images, images=32) == ""
