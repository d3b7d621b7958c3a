"""`lidiv study` against a fake Label Studio: made, stopped, done by participants, reported."""

from __future__ import annotations

import itertools
import json
import re
from email.parser import BytesParser
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from lidiv_backend.cli import main
from lidiv_backend.evaluation.protocols import intersection_over_union
from lidiv_backend.labelstudio.config import parse_label_config
from lidiv_backend.labelstudio.connect import open_client
from lidiv_backend.learning.store import Store, StoredAnnotation, StoredAnswer, StoredClick
from lidiv_backend.predictor import Proposal
from lidiv_backend.user_study.plan import read_object, read_plan
from lidiv_backend.user_study.project import read_projects, study_label_config
from tests.image_host import image_host, self_signed
from tests.labelstudio.fake_label_studio import TOKEN, URL, FakeLabelStudio
from tests.learning.lab import region

STARTED = 1795328789


class StudyLabelStudio(FakeLabelStudio):
    """With files and tasks, as a live Label Studio 1.23.2 answers about them."""

    def __init__(self) -> None:
        super().__init__()
        self.tasks: dict[int, dict[str, Any]] = {}
        self.files: dict[int, str] = {}
        self.uploaded: dict[str, bytes] = {}
        self.fails_after = 10**9
        self._task_numbers = itertools.count(100)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path.strip("/")
        if request.method == "POST" and (found := re.fullmatch(r"api/projects/(\d+)/import", path)):
            return self._import(int(found[1]), request)
        if found := re.fullmatch(r"api/import/file-upload/(\d+)", path):
            number = int(found[1])
            return httpx.Response(200, json={"id": number, "file": self.files[number]})
        if path == "api/tasks":
            wanted = int(request.url.params["project"])
            if request.url.params.get("page", "1") != "1":
                return httpx.Response(404, json={"status_code": 404, "detail": "Invalid page."})
            rows = [task for task in self.tasks.values() if task["project"] == wanted]
            return httpx.Response(200, json={"total": len(rows), "tasks": rows})
        return super().handle_request(request)

    def _import(self, project: int, request: httpx.Request) -> httpx.Response:
        content = request.read()
        kind = request.headers["content-type"]
        if kind.startswith("multipart/"):
            assert request.url.params["commit_to_project"] == "false"
            if self.projects[project]["label_config"].count("<Image") != 1:
                # "Your label config has more than one data key and direct file upload supports
                # only one data key."
                return httpx.Response(400, json={"status_code": 400, "detail": "Validation error"})
            message = BytesParser().parsebytes(
                b"Content-Type: " + kind.encode() + b"\n\n" + content
            )
            (part,) = message.get_payload()
            number = len(self.files) + 1
            self.files[number] = f"upload/{project}/{number:08x}-{part.get_filename()}"
            self.uploaded[f"/data/{self.files[number]}"] = part.get_payload(decode=True)
            body: dict[str, Any] = {"task_count": 0, "file_upload_ids": [number]}
            return httpx.Response(201, json=body)
        if len(self.tasks) >= self.fails_after:
            raise httpx.ConnectError("gone")
        numbers = []
        for data in json.loads(content):
            number = next(self._task_numbers)
            self.tasks[number] = {"id": number, "project": project, "data": data}
            numbers.append(number)
        return httpx.Response(201, json={"task_count": len(numbers), "task_ids": numbers})


class Sharp:
    """Selects what has the colour of the last positive click."""

    version = "sharp-1"

    def embed(self, rgb):
        return rgb[..., 1].astype(int)

    def predict(self, image, clicks, previous=None):
        click = [click for click in clicks if click.positive][-1]
        return [Proposal(mask=abs(image - image[int(click.y), int(click.x)]) < 10, score=1, head=0)]


class Blunt(Sharp):
    """Selects everything, until the fourth click."""

    version = "blunt-1"

    def predict(self, image, clicks, previous=None):
        if len(clicks) >= 4:
            return super().predict(image, clicks)
        return [Proposal(mask=np.ones(image.shape, bool), score=1, head=0)]


@pytest.fixture
def studio(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> StudyLabelStudio:
    fake = StudyLabelStudio()
    monkeypatch.setattr(
        "lidiv_backend.labelstudio.connect.open_client",
        partial(open_client, transport=fake),
    )
    monkeypatch.setenv("LIDIV_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("LIDIV_LABEL_STUDIO_URL", URL)
    monkeypatch.setenv("LIDIV_LABEL_STUDIO_TOKEN", TOKEN)
    return fake


@pytest.fixture
def create(tmp_path: Path) -> list[str]:
    """Two participants, two objects each, two models."""
    import cv2

    from tests import tiny

    images = tiny.PaintedSet(length=5, count=1)
    for part in ("images", "masks"):
        (tmp_path / "set" / part).mkdir(parents=True)
    for index in range(5):
        image = images[index]
        cv2.imwrite(str(tmp_path / "set" / "images" / f"{index}.png"), image.rgb[..., ::-1])
        mask = image.objects[0].mask.astype(np.uint8) * 255
        cv2.imwrite(str(tmp_path / "set" / "masks" / f"{index}.png"), mask)
    return [
        "study",
        "create",
        *("--folder", str(tmp_path / "study"), "--images", f"folder:{tmp_path / 'set'}"),
        *("--model", f"sharp={__name__}:Sharp@http://sharp.test:9090"),
        *("--model", f"blunt={__name__}:Blunt@http://blunt.test:9090"),
        *("--participants", "2", "--objects", "2", "--label-studio", URL),
    ]


def test_projects_tasks_and_worklists(
    studio: StudyLabelStudio, create: list[str], tmp_path: Path
) -> None:
    assert main(create) == 0
    folder = tmp_path / "study"
    plan, made = read_plan(folder), read_projects(folder)
    assert len(plan.tasks) == len(studio.tasks) == 8
    titles = {made.projects[model.label]: model.title for model in plan.models}
    found = {number: each["title"] for number, each in studio.projects.items()}
    (pictures,) = found.keys() - titles.keys()
    assert found == titles | {pictures: "Study: pictures"}
    urls = {each["project"]: each["url"] for each in studio.backends.values()}
    assert urls == {made.projects[m.label]: m.backend for m in plan.models}
    for task in plan.tasks:
        row = studio.tasks[made.tasks[task.key]]
        assert row["project"] == made.projects[task.model]
        pictures = folder / "pictures"
        image, target = row["data"]["image"], row["data"]["target"]
        assert studio.uploaded[image] == (pictures / f"{task.object}.png").read_bytes()
        assert studio.uploaded[target] == (pictures / f"{task.object}-target.png").read_bytes()
        # Nothing that a participant sees says which model answers.
        assert task.model not in json.dumps([row, studio.projects[row["project"]]])
    page = (folder / "participant-2.html").read_text()
    links = [int(number) for number in re.findall(r"data\?task=(\d+)", page)]
    assert links == [made.tasks[task.key] for task in plan.tasks if task.participant == 2]
    assert "sharp" not in page


def test_a_stopped_command_goes_on_and_a_finished_one_changes_nothing(
    studio: StudyLabelStudio, create: list[str], tmp_path: Path
) -> None:
    studio.fails_after = 3
    assert main(create) == 1
    assert len(studio.tasks) == 3
    studio.fails_after = 10**9
    assert main(create) == 0
    keys = [task["data"]["study"] for task in studio.tasks.values()]
    assert len(keys) == len(set(keys)) == 8
    before = json.dumps([studio.tasks, studio.projects, studio.backends, studio.webhooks])
    assert main(create) == 0
    assert json.dumps([studio.tasks, studio.projects, studio.backends, studio.webhooks]) == before


def test_clicks_go_to_the_image_and_not_to_the_target() -> None:
    config = parse_label_config(study_label_config())
    clicked = [image.name for image in config.images if image.smart_keypoints]
    assert clicked == ["image"]


def _participate(
    store: Store, folder: Path, *, clicks: int, leave_out: str = "", version: str = ""
) -> None:
    """Let everybody do every task by so many clicks in the middle of the object."""
    plan, made = read_plan(folder), read_projects(folder)
    for task in plan.tasks:
        if task.key == leave_out:
            continue
        _, mask = read_object(folder, task.object)
        y, x = (int(places.mean()) for places in np.nonzero(mask))
        height, width = mask.shape
        project = f"{made.projects[task.model]}.{STARTED}"
        number = made.tasks[task.key]
        place = {"x": 100 * (x + 0.5) / width, "y": 100 * (y + 0.5) / height, "positive": True}
        stored = [StoredClick(id=f"{k}", **place, next=k == 1) for k in range(clicks + 1)]
        store.keep_answer(
            StoredAnswer(
                region_id=f"region-{number}",
                project=project,
                task=number,
                first_click="0",
                interactive=True,
                to_name="image",
                label="Object",
                height=height,
                width=width,
                clicks=tuple(stored),
                proposals=(),
                shown=0,
                model_version=version or f"{task.model}-1",
            )
        )
        store.keep_annotations(
            project,
            [
                StoredAnnotation(
                    project=project,
                    annotation=number,
                    task=number,
                    task_data={},
                    result=region(mask, identity=f"region-{number}"),
                    was_cancelled=False,
                    completed_by=task.participant,
                    lead_time=12.0,
                )
            ],
            deleted=(),
        )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "state").mkdir()
    return Store(f"sqlite:///{tmp_path / 'state' / 'lidiv.sqlite'}")


def test_figure_6_and_its_numbers(
    studio: StudyLabelStudio,
    create: list[str],
    store: Store,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(create) == 0
    folder = tmp_path / "study"
    _participate(store, folder, clicks=5)
    assert main(["study", "report", "--folder", str(folder)]) == 0
    text = capsys.readouterr().out
    assert "| sharp | 4 | 1.00 (1.00 to 1.00) | 100 % | 1.000 | 1.00 | 12 |" in text
    assert "| blunt | 4 | 4.00 (4.00 to 4.00) | 100 % | 1.000 | 1.00 | 12 |" in text
    assert "Missing" not in text
    assert (folder / "study.md").read_text() in text
    assert (folder / "figure-6.png").read_bytes().startswith(b"\x89PNG")
    outcome = json.loads((folder / "outcome.json").read_text())
    assert outcome["models"]["sharp"]["version"] == "sharp-1"
    (one,) = (t for t in outcome["tasks"] if t["task"] == vars_of(read_plan(folder).tasks[0]))
    _, mask = read_object(folder, one["task"]["object"])
    if one["task"]["model"] == "blunt":
        assert one["ious"][0] == intersection_over_union(np.ones_like(mask), mask)
    assert len(one["ious"]) == 5
    # The second click of the six asked for another proposal.
    assert (one["steps"], one["steps_after"]) == (1, [1, 0, 0, 0, 0])
    assert [action["stepped"] for action in one["actions"]] == [False, True] + 4 * [False]
    assert outcome["models"]["blunt"]["clicks"]["mean"] == 4
    assert outcome["models"]["blunt"]["actions"]["mean"] == 5


def vars_of(task: Any) -> dict[str, Any]:
    return {name: getattr(task, name) for name in ("participant", "place", "object", "model")}


def test_what_is_missing_is_said(
    studio: StudyLabelStudio,
    create: list[str],
    store: Store,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(create) == 0
    folder = tmp_path / "study"
    assert main(["study", "report", "--folder", str(folder)]) == 1
    assert "No task of the study was done yet" in capsys.readouterr().err
    # Two clicks are not enough for the blunt one: it counts 20, as in the paper.
    left_out = read_plan(folder).tasks[0].key
    _participate(store, folder, clicks=2, leave_out=left_out, version="other-7")
    assert main(["study", "report", "--folder", str(folder)]) == 0
    text = capsys.readouterr().out
    assert re.search(r"\| blunt \| [34] \| 20\.00 \(20\.00 to 20\.00\) \| 0 % \|", text)
    assert f"- {left_out}: not done" in text
    assert "answered by other-7, measured with sharp-1" in text


def test_certificates_of_label_studios_own(
    create: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    certificate = self_signed(tmp_path)
    monkeypatch.setenv("LIDIV_LABEL_STUDIO_TOKEN", TOKEN)
    monkeypatch.setenv("LIDIV_CA_BUNDLE", str(certificate))
    with image_host(certificate=certificate) as host:
        monkeypatch.setenv("LIDIV_LABEL_STUDIO_URL", host.url)
        assert main([*create, "--label-studio", host.url]) == 1
    assert "status 404" in capsys.readouterr().err  # the answer of a host that has nothing


def test_refusals(
    studio: StudyLabelStudio,
    create: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    assert main([*create, "--model", "no address"]) == 1
    assert "LABEL=SOURCE@URL" in capsys.readouterr().err
    assert main([*create, "--model", f"sharp={__name__}:Sharp@http://x.test"]) == 1
    assert "called alike" in capsys.readouterr().err
    assert main([*create, "--objects", "9"]) == 1
    assert "cannot be drawn from 5" in capsys.readouterr().err
    monkeypatch.delenv("LIDIV_LABEL_STUDIO_TOKEN")
    assert main(create) == 1
    assert "Which Label Studio?" in capsys.readouterr().err
