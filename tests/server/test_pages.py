from __future__ import annotations

import base64
import json
import re
import statistics
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy.orm import Session
from werkzeug.test import TestResponse

from lidiv_backend.evaluation.measures import Interval
from lidiv_backend.learning.examples import draw_examples
from lidiv_backend.learning.gate import Comparison, Verdict
from lidiv_backend.learning.registry import BASE, SHARED, ModelRegistry, channel_of
from lidiv_backend.learning.runs import RunCause, RunQueue, RunState, TrainingRun
from lidiv_backend.learning.schema import AcceptedMaskRow, SnapshotRow, TrainingRunRow
from lidiv_backend.learning.store import Failure, StoredAnnotation
from lidiv_backend.server.app import backend_of
from lidiv_backend.server.backend import Backend
from lidiv_backend.server.pages import Pages
from lidiv_backend.server.security import CSRF_FIELD
from tests import tiny
from tests.fake_engine import FakeEngine
from tests.image_host import ImageHost
from tests.server.lab_day import LabDay

HOSTILE = "<script>alert('x')</script>"
PROJECT, OTHER = "7.1795328789", "9.1795328789"
HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
LOGIN = {"basic_auth_user": "lab", "basic_auth_password": "password"}
AUTHORIZATION = {"Authorization": "Basic " + base64.b64encode(b"lab:password").decode()}


class Lab:
    """An application with weights, versions and runs."""

    def __init__(self, app: Flask, folder: Path) -> None:
        self.app = app
        self.folder = folder
        self.backend: Backend = backend_of(app)
        self.store = self.backend.store
        self.state = self.backend.settings.state_folder
        self.registry = ModelRegistry(self.state, base=self.backend.settings.preset)
        self.queue = RunQueue(self.store)
        self.client: FlaskClient = app.test_client()

    @property
    def pages(self) -> Pages:
        return Pages(self.backend)

    def version(self, seed: int, **report: Any) -> str:
        return self.registry.add(tiny.saved(self.folder / f"w{seed}", seed=seed), report)

    def accept(self, number: int, *, project: str = PROJECT, result: Any = ()) -> None:
        self.store.keep_annotations(
            project,
            [
                StoredAnnotation(
                    project=project,
                    annotation=number,
                    task=number,
                    task_data={},
                    result=list(result),
                    was_cancelled=False,
                    completed_by=1,
                    lead_time=1.0,
                )
            ],
            deleted=[],
        )

    def cost(self, number: int, *, ago: int, clicks: int, version: str, steps: int = 0) -> None:
        """A mask that was accepted some days ago."""
        row = AcceptedMaskRow(
            project=PROJECT,
            annotation=number,
            region_id=f"r{number}",
            model_version=version,
            clicks=clicks,
            steps=steps,
            seconds=10 * clicks,
            day=(datetime.now(UTC) - timedelta(days=ago)).date(),
        )
        self.store.write(lambda session: session.add(row))

    def run(self, **values: Any) -> TrainingRun:
        """A run that was done, as the worker leaves it."""
        asked = self.queue.enqueue(values.pop("channel", SHARED), RunCause.COMMAND)
        state = values.pop("state", RunState.DONE)
        if state is not RunState.QUEUED:
            assert self.queue.claim("worker", run=asked.id)
        if state in (RunState.DONE, RunState.FAILED):
            message = values.pop("message", "Kept, not promoted: so it is. And more.")
            self.queue.finish(asked.id, "worker", state=state, message=message, **values)
        return self.queue.run(asked.id)

    def get(self, path: str, *, status: int = 200) -> str:
        response = self.client.get(path, headers=HTML)
        assert response.status_code == status, response.get_data(as_text=True)
        assert response.mimetype == "text/html"
        return response.get_data(as_text=True)

    def press(self, path: str, *, token: str | None = None, **fields: str) -> TestResponse:
        """Post a form as the page has it."""
        if token is None:
            found = re.search(rf'name="{CSRF_FIELD}" value="([^"]+)"', self.get("/"))
            assert found is not None
            token = found[1]
        return self.client.post(
            path,
            data=fields | {CSRF_FIELD: token},
            headers=HTML | {"Sec-Fetch-Site": "same-origin"},
        )


@pytest.fixture
def make_lab(make_app: Callable[..., Flask], tmp_path: Path) -> Callable[..., Lab]:
    base = tiny.saved(tmp_path / "preset", seed=0)
    return lambda **settings: Lab(make_app(preset=str(base), **settings), tmp_path)


@pytest.fixture
def lab(make_lab: Callable[..., Lab]) -> Lab:
    return make_lab()


def verdict(*, passed: bool = False) -> Verdict:
    held_out = Comparison(
        data_set="held out",
        images=3,
        objects=5,
        candidate=2.0,
        in_use=3.0,
        difference=Interval(mean=-1.0, low=-1.5, high=-0.25),
        per_image=((1.0, 2.0), (2.0, 3.5), (3.0, 3.5)),
    )
    return Verdict(passed=passed, text="Kept: so it is.", held_out=held_out, base=None)


def text_of(page: str) -> str:
    """What a person reads, its spaces as one."""
    found: list[str] = []
    parser = HTMLParser()
    parser.handle_data = found.append  # type: ignore[method-assign]
    parser.feed(page.partition("</style>")[2])
    return " ".join(" ".join(found).split())


# --- What is shown -------------------------------------------------------------------------------


def test_clicks_are_counted_as_by_hand(lab: Lab) -> None:
    made = {2: [4, 6, 5, 1], 1: [3, 2], 0: [1, 1, 1, 2]}
    number = 0
    for ago, clicks in made.items():
        for count in clicks:
            number += 1
            version = "old" if ago == 2 else "new"
            lab.cost(number, ago=ago, clicks=count, version=version, steps=int(count == 6))
    usage = lab.pages.home().usage
    everything = [count for clicks in made.values() for count in clicks]
    assert usage.total is not None
    assert usage.total.masks == len(everything)
    assert usage.total.clicks.mean == pytest.approx(statistics.fmean(everything))
    assert usage.total.clicks.median == statistics.median_low(everything)
    assert usage.total.stepped == 1
    # The latest first, in the tables; time goes to the right in the chart.
    assert [line.cost.masks for line in usage.days] == [4, 2, 4]
    assert [line.cost.clicks.mean for line in usage.days] == [1.25, 2.5, 4.0]
    assert [(line.version, line.cost.masks) for line in usage.versions] == [("new", 6), ("old", 4)]
    assert usage.chart is not None
    xs = [day.x for day in usage.chart.days]
    ys = [day.mean for day in usage.chart.days]
    assert xs == sorted(xs)
    assert ys == sorted(ys), "fewer clicks are further down"
    page = text_of(lab.get("/"))
    assert "1 of 10 masks" in page
    assert "10 %" in page


def test_masks_come_in_by_the_real_interface(lab: Lab, label_studio: ImageHost) -> None:
    def post(path: str, body: Any) -> Any:
        response = lab.client.post(path, json=body)
        assert response.status_code in (200, 201), response.get_data(as_text=True)
        return response.get_json()

    day = LabDay(post=post, host=label_studio)
    day.connect()
    for clicks in ("+", "+n", "++-"):
        assert day.accept(clicks) == "fake-1"
    usage = lab.pages.home().usage
    (line,) = usage.versions
    assert (line.version, line.cost.masks, line.cost.stepped) == ("fake-1", 3, 1)
    assert line.cost.clicks.mean == 2.0
    assert usage.total is not None
    assert usage.total.seconds is not None
    (channel,) = lab.pages.home().channels
    assert (channel.accepted, channel.new) == (3, 3)


def test_one_project_can_be_looked_at(lab: Lab) -> None:
    lab.accept(1)
    lab.accept(2, project=OTHER)
    lab.cost(1, ago=0, clicks=3, version="v")
    assert lab.pages.home(project=OTHER).usage.total is None
    assert lab.pages.home(project=PROJECT).usage.total is not None
    assert "Nothing was accepted yet in this project" in text_of(lab.get(f"/?project={OTHER}"))
    assert f"project={OTHER}" in lab.get("/")


def test_a_run_on_its_own_page(lab: Lab) -> None:
    run = lab.run(verdict=verdict().to_json(), snapshot="5" * 64, candidate="v", base_version=BASE)
    folder = lab.state / "runs" / str(run.id)
    (folder / "training").mkdir(parents=True)
    rows = [
        {"phase": "joint", "step": step, "loss": 1 / step, "best": 0.7, "selected": 0.6}
        for step in (10, 20, 30)
    ]
    (folder / "training" / "log.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / "job.json").write_text('{"settings": {"steps": 30, "base_data": ""}}')
    images = tiny.PaintedSet(length=2)
    draw_examples(FakeEngine(radii=(0.3,)), FakeEngine(radii=(0.1,)), images, folder)

    def snapshot(session: Session) -> None:
        problems = [f"Annotation {number}: {HOSTILE}" for number in range(30)]
        counts = {"train_images": 8, "train_masks": 20, "held_out_images": 3, "held_out_masks": 5}
        session.add(SnapshotRow(digest="5" * 64, channel=SHARED, problems=problems, **counts))

    lab.store.write(snapshot)
    page = lab.pages.run(run.id)
    assert page.loss is not None
    assert len(page.loss.series[0].line.split()) == 3
    assert page.snapshot is not None
    assert (len(page.snapshot.problems), page.snapshot.more_problems) == (20, 10)
    (comparison,) = page.comparisons
    assert comparison.pairs is not None
    assert len(comparison.pairs.slopes) == 3
    assert {slope.kind for slope in comparison.pairs.slopes} == {"fewer"}
    html = lab.get(f"/runs/{run.id}")
    told = text_of(html)
    for words in (
        "Kept, not promoted: so it is.",
        "20 masks in 8 images",
        "-1.00, 95 % interval -1.50 to -0.25",
        "needs fewer clicks to 85 % IoU",
        "30 annotations were left out",
        "LIDIV_LEARN_STEPS 30",
    ):
        assert words in told
    assert "LIDIV_BASE_DATA" in told
    assert HOSTILE not in html
    sources = re.findall(r'<img src="([^"]+)"', html)
    assert len(sources) == 6
    picture = lab.client.get(sources[0])
    assert (picture.mimetype, picture.data[:2]) == ("image/jpeg", b"\xff\xd8")


def test_a_run_that_failed_says_why_and_what_to_do(lab: Lab) -> None:
    message = f"There was not enough memory {HOSTILE}. Give the machine more."
    run = lab.run(state=RunState.FAILED, message=message)
    folder = lab.state / "runs" / str(run.id)
    folder.mkdir(parents=True)
    (folder / "process.log").write_text("x" * 10_000 + "\nRuntimeError <b>at the end</b>")
    html = lab.get(f"/runs/{run.id}")
    told = text_of(html)
    assert "Give the machine more." in told
    assert "the model that was in use still is" in told
    assert "RuntimeError <b>at the end</b>" in told
    assert "<b>" not in html
    assert HOSTILE not in html
    assert len(html) < 25_000
    assert "There was not enough memory" in text_of(lab.get("/"))


def test_a_run_under_way_is_followed(lab: Lab) -> None:
    run = lab.run(state=RunState.RUNNING)
    lab.queue.beat(run.id, "worker", stage="training", progress={"step": 20, "seconds": 31.4})
    html = lab.get(f"/runs/{run.id}")
    assert '<meta http-equiv="refresh"' in html
    assert "It trains: step 20, after 31 s" in text_of(html)
    (channel,) = lab.pages.home().channels
    assert not channel.training.can_start
    assert channel.training.reason == f"Run {run.id} is under way."


def test_a_run_that_nobody_takes_up_says_what_is_missing(lab: Lab) -> None:
    run = lab.run(state=RunState.QUEUED)
    assert "lidiv worker" not in lab.get(f"/runs/{run.id}")

    def earlier(session: Session) -> None:
        row = session.get(TrainingRunRow, run.id)
        assert row is not None
        row.created_at = datetime.now(UTC) - timedelta(minutes=10)

    lab.store.write(earlier)
    assert "No worker has taken it up" in lab.get(f"/runs/{run.id}")


def test_versions_tell_what_they_scored_and_where_they_are_used(lab: Lab) -> None:
    version = lab.version(1, run=4, channel=SHARED, parent=BASE, verdict=verdict().to_json())
    lab.registry.promote(SHARED, version)
    lab.cost(1, ago=0, clicks=2, version=version)
    newest, preset = lab.pages.home().versions
    assert (newest.version, newest.run, newest.in_use) == (version, 4, ("all projects",))
    assert newest.held_out is not None
    assert (newest.held_out.before, newest.held_out.after) == (3.0, 2.0)
    assert newest.cost is not None
    assert (preset.version, preset.in_use) == (BASE, ())
    told = text_of(lab.get(f"/models/{version}"))
    assert "Kept: so it is." in told
    assert "Roll back" in told
    assert "Promote for all projects" in text_of(lab.get("/models/base"))


def test_a_report_of_another_time_does_not_break_the_page(lab: Lab) -> None:
    odd: tuple[Any, ...] = (
        {"verdict": {"passed": True}},
        {"verdict": [1], "run": "x", "channel": 5},
        {"verdict": {"passed": 1, "text": "t", "held_out": {"images": 1}, "base": None}},
    )
    for seed, report in enumerate(odd, start=1):
        version = lab.version(seed, **report)
        lab.get(f"/models/{version}")
    run = lab.run(verdict={"text": "of another time"})
    lab.get(f"/runs/{run.id}")
    lab.get("/")


def test_models_of_single_projects_are_shown(
    make_lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIDIV_LEARN_SHARED", "false")
    lab = make_lab()
    assert "none has an accepted annotation yet" in text_of(lab.get("/"))
    lab.accept(1)
    lab.accept(2, project=OTHER)
    lab.accept(3, project=OTHER)
    lab.registry.promote(channel_of(PROJECT), lab.version(1, channel=channel_of(PROJECT)))
    channels = {channel.title: channel for channel in lab.pages.home().channels}
    assert {title: channel.accepted for title, channel in channels.items()} == {
        "project 7": 1,
        "project 9": 2,
    }
    assert channels["project 7"].back_to == BASE
    assert channels["project 9"].in_use == BASE
    response = lab.press(f"/channels/{channel_of(OTHER)}/train")
    assert response.status_code == 303
    (run,) = lab.queue.runs()
    assert (run.channel, run.project, run.cause) == (channel_of(OTHER), OTHER, RunCause.BUTTON)


def test_a_projects_own_thresholds_are_what_is_waited_for(
    make_lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIDIV_LEARN_SHARED", "false")
    monkeypatch.setenv("LIDIV_LEARN_PROJECTS", '{"7": {"after": 2, "pause_minutes": 7.5}}')
    lab = make_lab()

    def hint(title: str) -> str:
        (channel,) = (each for each in lab.pages.home().channels if each.title == title)
        return channel.training.hint

    lab.accept(1)
    lab.accept(1, project=OTHER)
    assert "after 1 more accepted annotation." in hint("project 7")
    assert "after 19 more accepted annotations." in hint("project 9")
    lab.accept(2)
    assert "at most every 7.5 minutes" in hint("project 7")


def test_hostile_names_are_only_text(lab: Lab) -> None:
    lab.accept(1, project=f"{HOSTILE}.1")
    lab.accept(2)
    lab.store.keep_connection(
        project=HOSTILE, hostname=HOSTILE, access_token="", label_config="", extra_params={}
    )
    lab.store.keep_failure(
        Failure(kind=HOSTILE, message=HOSTILE, remedy=HOSTILE, request_id="r", route=HOSTILE)
    )
    lab.cost(1, ago=0, clicks=1, version=HOSTILE)
    lab.run(message=HOSTILE, candidate="x", verdict={"text": HOSTILE})
    html = lab.get("/")
    assert "<script" not in html
    assert html.count("&lt;script&gt;") >= 7
    for path in ("/?project=<script>", "/models/<script>", "/?said=<script>"):
        response = lab.client.get(path, headers=HTML)
        assert response.mimetype == "text/html"
        assert "<script" not in response.get_data(as_text=True)


# --- What the buttons do -------------------------------------------------------------------------


def test_start_training(lab: Lab) -> None:
    refused = lab.press("/channels/shared/train")
    assert refused.status_code == 409
    assert "none was accepted yet" in text_of(refused.get_data(as_text=True))
    assert lab.queue.runs() == []
    lab.accept(1)
    (channel,) = lab.pages.home().channels
    assert channel.training.can_start
    assert "19 more accepted annotations" in channel.training.hint
    pressed = lab.press("/channels/shared/train")
    assert pressed.status_code == 303
    (run,) = lab.queue.runs()
    assert (run.state, run.cause, run.project) == (RunState.QUEUED, RunCause.BUTTON, None)
    assert "asked for" in text_of(lab.get(pressed.location))
    again = lab.press("/channels/shared/train")
    assert again.status_code == 409
    assert len(lab.queue.runs()) == 1


def test_promote_and_roll_back(lab: Lab) -> None:
    first, second = lab.version(1), lab.version(2)
    pressed = lab.press("/channels/shared/promote", version=first, expected=BASE)
    assert pressed.status_code == 303
    assert "in use now" in text_of(lab.get(pressed.location))
    assert lab.registry.pointer(SHARED).version == first
    # The page of somebody else still shows the preset.
    late = lab.press("/channels/shared/promote", version=second, expected=BASE)
    assert late.status_code == 409
    assert "meanwhile" in text_of(late.get_data(as_text=True))
    assert lab.press("/channels/shared/rollback", expected=BASE).status_code == 409
    assert lab.registry.pointer(SHARED).version == first
    back = lab.press("/channels/shared/rollback", expected=first)
    assert back.status_code == 303
    assert back.location == "/models/base?said=rolled-back"
    assert lab.registry.pointer(SHARED).version == BASE
    none = lab.press("/channels/shared/rollback", expected=BASE)
    assert none.status_code == 400
    assert "no version to go back to" in text_of(none.get_data(as_text=True))


def test_a_damaged_version_is_not_put_in_use(lab: Lab) -> None:
    version = lab.version(1)
    (Path(lab.registry.source(version)) / "f.safetensors").write_bytes(b"")
    response = lab.press("/channels/shared/promote", version=version, expected=BASE)
    assert response.status_code == 503
    assert response.mimetype == "text/html"
    assert lab.registry.pointer(SHARED).version == BASE


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/channels/project-5/train", {}),
        ("/channels/../train", {}),
        ("/channels/project-5/promote", {"version": BASE, "expected": BASE}),
        ("/channels/shared/promote", {"version": "gone", "expected": BASE}),
        ("/channels/shared/promote", {"version": "../../etc", "expected": BASE}),
        ("/channels/shared/promote", {}),
    ],
)
def test_what_is_not_there(lab: Lab, path: str, fields: dict[str, str]) -> None:
    assert lab.press(path, **fields).status_code == 404
    assert lab.queue.runs() == []
    assert lab.registry.channels() == []


def test_addresses_that_lead_nowhere(lab: Lab) -> None:
    for path in ("/runs/5", f"/runs/{10**30}", "/models/gone", "/runs/5/examples/1-after.jpg"):
        assert "There is no" in text_of(lab.get(path, status=404))
    assert lab.client.get("/channels/shared/train").location == "/"
    assert lab.store.recent_failures() == []


def test_an_error_in_the_page_is_told_as_a_page(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pages, "home", lambda *_, **__: 1 / 0)
    html = lab.get("/", status=500)
    (failure,) = lab.store.recent_failures()
    assert failure.kind == "defect"
    assert failure.request_id in html


# --- Who may -----------------------------------------------------------------------------------


PAGES = ("/", "/runs/1", "/models/base", "/runs/1/examples/1-after.jpg", "/channels/shared/train")
FORMS = ("/channels/shared/train", "/channels/shared/promote", "/channels/shared/rollback")


def test_every_page_needs_the_login(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(**LOGIN)
    lab.accept(1)
    for path in PAGES:
        response = lab.client.get(path, headers=HTML)
        assert (response.status_code, response.mimetype) == (401, "text/html")
        assert response.headers["WWW-Authenticate"].startswith("Basic")
        assert "Start training" not in response.get_data(as_text=True)
        # What is no browser gets what it gets elsewhere.
        assert lab.client.get(path).get_json()["error"] == "unauthorized"
    for path in FORMS:
        assert lab.client.post(path, headers=HTML).status_code == 401
    assert lab.client.get("/", headers=HTML | AUTHORIZATION).status_code == 200
    assert lab.queue.runs() == []


@pytest.mark.parametrize("path", FORMS)
def test_other_sites_press_no_button(lab: Lab, path: str) -> None:
    lab.accept(1)
    version = lab.version(1)
    lab.registry.promote(SHARED, version)
    found = re.search(rf'name="{CSRF_FIELD}" value="([^"]+)"', lab.get("/"))
    assert found is not None
    fields = {"version": BASE, "expected": version}
    for token, site in (("", "same-origin"), (found[1], "cross-site"), ("0" * 64, "same-origin")):
        data = fields | {CSRF_FIELD: token}
        headers = HTML | {"Sec-Fetch-Site": site}
        response = lab.client.post(path, data=data, headers=headers)
        assert response.status_code == 403
        assert "not sent from this server" in text_of(response.get_data(as_text=True))
    assert lab.queue.runs() == []
    assert lab.registry.pointer(SHARED).version == version


def test_the_page_needs_no_script_and_nothing_from_elsewhere(lab: Lab) -> None:
    lab.cost(1, ago=0, clicks=3, version="v")
    response = lab.client.get("/", headers=HTML)
    policy = response.headers["Content-Security-Policy"]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    html = response.get_data(as_text=True)
    assert "<script" not in html
    assert not re.search(r'\sstyle="', html)
    assert not re.search(r'(src|href|action)="(https?:)?//', html)
    assert response.headers["Cache-Control"] == "no-store"
