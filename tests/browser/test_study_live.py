"""`lidiv study` against a real Label Studio and backend: made, done by API, reported."""

from __future__ import annotations

import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import requests

from lidiv_backend.cli import main
from lidiv_backend.demo.stack import Stack
from lidiv_backend.labelstudio.config import parse_label_config
from lidiv_backend.learning.store import Store
from lidiv_backend.records import AnnotatedImage, ObjectMask
from lidiv_backend.simulate_lab.annotator import SimulatedAnnotator
from lidiv_backend.user_study.outcome import collect
from lidiv_backend.user_study.plan import read_object, read_plan
from lidiv_backend.user_study.project import read_projects, study_label_config
from tests import tiny

pytestmark = pytest.mark.browser

WEBHOOK_SECONDS = 60.0


def test_a_study_from_the_drawing_to_figure_6(
    stack: Stack,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    images = tiny.PaintedSet(length=2, height=120, width=160, count=1)
    for part in ("images", "masks"):
        (tmp_path / "set" / part).mkdir(parents=True)
    for index in range(2):
        image = images[index]
        cv2.imwrite(str(tmp_path / "set" / "images" / f"{index}.png"), image.rgb[..., ::-1])
        mask = image.objects[0].mask.astype(np.uint8) * 255
        cv2.imwrite(str(tmp_path / "set" / "masks" / f"{index}.png"), mask)
    database = stack.folder / "backend" / "lidiv.sqlite"
    monkeypatch.setenv("LIDIV_DATABASE_URL", f"sqlite:///{database}")
    monkeypatch.setenv("LIDIV_LABEL_STUDIO_URL", stack.label_studio_url)
    monkeypatch.setenv("LIDIV_LABEL_STUDIO_TOKEN", stack.credentials.token)
    monkeypatch.setenv("LIDIV_WEBHOOK_SECRET", stack.credentials.webhook_secret)
    folder = tmp_path / "study"
    create = ["study", "create", "--folder", str(folder), "--images", f"folder:{tmp_path / 'set'}"]
    create += ["--model", f"ours=default@{stack.backend_url}", "--participants", "1"]
    create += ["--objects", "2", "--title", "Live study"]
    assert main(create) == 0
    # A second time everything is there.
    assert main(create) == 0
    plan, made = read_plan(folder), read_projects(folder)
    client = stack.client()
    (project,) = made.projects.values()
    assert sorted(task.id for task in client.tasks.list(project=project)) == sorted(
        made.tasks.values()
    )
    # Label Studio shows the pictures that were uploaded.
    data = client.tasks.get(id=str(made.tasks[plan.tasks[0].key])).data
    headers = {"Authorization": f"Token {stack.credentials.token}"}
    shown = requests.get(stack.label_studio_url + data["target"], headers=headers, timeout=60)
    number = plan.tasks[0].object
    assert shown.content == (folder / "pictures" / f"{number}-target.png").read_bytes()

    (backend,) = client.ml.list(project=project)
    annotator = SimulatedAnnotator(
        url=stack.label_studio_url,
        token=stack.credentials.token,
        backend=backend.id,
        config=parse_label_config(study_label_config()),
        label="Object",
    )
    for task in plan.tasks:
        rgb, mask = read_object(folder, task.object)
        item = ObjectMask(name=task.key, mask=mask)
        annotator.annotate(
            made.tasks[task.key], AnnotatedImage(name=task.key, rgb=rgb, objects=(item,))
        )
    store = Store(f"sqlite:///{database}")
    deadline = time.monotonic() + WEBHOOK_SECONDS
    # Webhooks arrive by themselves; the store is asked until they have.
    while len(collect(store, plan, made, folder)[0]) < 2 and time.monotonic() < deadline:
        time.sleep(0.5)
    done, missing = collect(store, plan, made, folder)
    store.close()
    assert (len(done), missing) == (2, [])
    capsys.readouterr()
    assert main(["study", "report", "--folder", str(folder)]) == 0
    text = capsys.readouterr().out
    assert "| ours | 2 |" in text
    assert "Missing" not in text
    assert (folder / "figure-6.png").read_bytes().startswith(b"\x89PNG")
