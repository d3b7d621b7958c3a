"""The real processes and a Label Studio that they talk to; ways to watch and to kill them."""

from __future__ import annotations

import copy
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import cv2
import httpx
import numpy as np
import psutil
import requests
from sqlalchemy import create_engine, text

from lidiv_backend.learning.registry import ModelRegistry
from lidiv_backend.learning.runs import RunQueue, RunState, TrainingRun
from lidiv_backend.learning.store import Store
from lidiv_backend.model import load_model
from lidiv_backend.records import AnnotatedImage, ObjectMask
from tests import tiny
from tests.image_host import Answer, Seen, encoded, image_host
from tests.labelstudio import golden
from tests.labelstudio.fake_label_studio import TOKEN, FakeLabelStudio
from tests.learning.lab import PROJECT, region

ROOT = Path(__file__).parents[3]
SECRET = "a secret of the webhooks"
#: Seconds; far more than anything takes, so that a busy machine fails nothing.
BOUND = 600.0
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class WholeImages:
    """Images that are almost all object: to say so is learnt within seconds, and nobody knows it
    before."""

    length: int
    height: int = 32
    width: int = 40
    name: str = "whole"

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> AnnotatedImage:
        rng = np.random.default_rng([7, index])
        rgb = np.full((self.height, self.width, 3), (30, 60, 220), dtype=np.uint8)
        mask = np.zeros((self.height, self.width), dtype=bool)
        mask[1:-1, 1:-1] = True
        rgb[mask] = (200, 40, 40)
        rgb[..., 0] -= rng.integers(0, 30, (self.height, self.width), dtype=np.uint8)
        item = ObjectMask(name=f"{index}.0", mask=mask)
        return AnnotatedImage(name=f"{index}", rgb=rgb, objects=(item,))


#: Tasks 0, 1, ... show them, again and again.
IMAGES = WholeImages(16)


def until(condition: Callable[[], _Result], what: str, *, bound: float = BOUND) -> _Result:
    """Wait for something that can be observed, and give what the condition gave."""
    deadline = time.monotonic() + bound
    pause = threading.Event()
    while not (found := condition()):
        assert time.monotonic() < deadline, f"Not within {bound:g} s: {what}"
        pause.wait(0.05)
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@dataclass
class LabelStudio:
    """Tasks with their images, and what its REST API says."""

    url: str
    fake: FakeLabelStudio
    project: int = int(PROJECT.partition(".")[0])
    #: Called with the task before its image is sent.
    while_fetching: Callable[[int], object] = lambda task: None
    gone: set[int] = field(default_factory=set)

    def answer(self, seen: Seen) -> Answer:
        if seen.path.startswith("/data/upload/"):
            task = int(Path(seen.path).stem)
            self.while_fetching(task)
            if task in self.gone:
                return Answer(404)
            return Answer(body=encoded(IMAGES[task % len(IMAGES)].rgb))
        request = httpx.Request(
            seen.method,
            f"{self.url}{seen.path}",
            headers={"Authorization": seen.authorization or ""},
            content=seen.body,
        )
        answer = self.fake.handle_request(request)
        headers = {"Content-Type": "application/json"}
        return Answer(answer.status_code, answer.content, headers)


@contextmanager
def label_studio() -> Iterator[LabelStudio]:
    with image_host() as host:
        made = LabelStudio(host.url, FakeLabelStudio())

        class Routes(dict[str, Any]):
            def get(self, path: str, default: Any = None) -> Any:
                return made.answer

        host.routes = Routes()
        yield made


def environment(folder: Path, url: str, **changes: object) -> dict[str, str]:
    """Settings of a server that learns within seconds."""
    about = dataclasses.replace(
        tiny.description(heads=2, ranked=True),
        training={"crop": 32, "images": 2, "targets": 1, "joint": True},
    )
    preset = folder / "preset"
    if not preset.exists():
        tiny.saved(preset, about)
    settings = {
        "LIDIV_STATE": folder / "state",
        "LIDIV_PRESET": preset,
        "LIDIV_DEVICE": "cpu",
        "LIDIV_LABEL_STUDIO_URL": url,
        "LIDIV_LABEL_STUDIO_TOKEN": TOKEN,
        "LIDIV_WEBHOOK_SECRET": SECRET,
        "LIDIV_IMAGE_SECONDS": 2 * BOUND,
        "LIDIV_LOAD_SECONDS": BOUND,
        "LIDIV_LEARN_AFTER": 1_000_000,
        "LIDIV_LEARN_ANCHOR": 0,
        "LIDIV_LEARN_DEVICE": "cpu",
        "LIDIV_LEARN_GATE_IMAGES": 5,
        "LIDIV_LEARN_GATE_OBJECTS": 1,
        "LIDIV_LEARN_HOLDOUT": 0.5,
        "LIDIV_LEARN_KEEP": 1000,
        "LIDIV_LEARN_LEASE_SECONDS": 8,
        "LIDIV_LEARN_POLL_SECONDS": 0.2,
        "LIDIV_LEARN_RATE": 1e-2,
        "LIDIV_LEARN_STEPS": 20,
        "LIDIV_LEARN_THREADS": 1,
        "LIDIV_BASE_DATA": _base_folder(folder / "base"),
        "OMP_NUM_THREADS": 1,
    }
    outside = {name: value for name, value in os.environ.items() if not name.startswith("LIDIV_")}
    return outside | {name: str(value) for name, value in (settings | changes).items()}


def _base_folder(folder: Path) -> str:
    """A base set of the same kind."""
    images = WholeImages(40)
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for image in (images[number] for number in range(len(images))):
        cv2.imwrite(str(folder / "images" / f"{image.name}.png"), image.rgb[..., ::-1])
        mask = image.objects[0].mask.astype(np.uint8) * 255
        cv2.imwrite(str(folder / "masks" / f"{image.name}.png"), mask)
    return f"folder:{folder}"


@dataclass
class Service:
    """`lidiv serve`, with whatever it starts."""

    folder: Path
    environment: dict[str, str]
    arguments: tuple[str, ...] = ()
    port: int = field(default_factory=free_port)
    #: All processes that were ever seen.
    seen: set[psutil.Process] = field(default_factory=set)
    master: psutil.Process | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        return self.folder / f"serve-{self.port}.log"

    def start(self) -> None:
        words = ["serve", "--port", str(self.port), *self.arguments]
        with self.log.open("ab") as log:
            self.master = psutil.Popen(
                [sys.executable, "-m", "lidiv_backend.cli", *words],
                cwd=ROOT,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def is_ready(self) -> bool:
        assert self.master is not None
        assert self.master.is_running(), self.log.read_text()
        with suppress(requests.RequestException):
            return requests.get(f"{self.url}/ready", timeout=30).status_code == 200
        return False

    def wait(self) -> None:
        until(self.is_ready, "the server is ready")

    def find(self, role: str) -> psutil.Process | None:
        """``master``, ``server``, ``worker`` or ``trainer``; None if there is none just now."""
        assert self.master is not None
        with suppress(psutil.NoSuchProcess):
            children = self.master.children(recursive=True)
            self.seen |= {self.master, *children}
            if role == "master":
                return self.master
            for child in children:
                with suppress(psutil.NoSuchProcess):
                    if child.status() != psutil.STATUS_ZOMBIE and _role(child) == role:
                        return child
        return None

    def kill(self, role: str) -> bool:
        """Kill the process of a role, if there is one."""
        process = self.find(role)
        if process is None:
            return False
        with suppress(psutil.NoSuchProcess):
            process.kill()
            if role == "master":
                process.wait(30)
        return True

    def are_gone(self) -> bool:
        """Whether every process that was seen has ended."""
        return not any(process.is_running() and _lives(process) for process in self.seen)

    def stop(self) -> None:
        """Ask it to end; whatever is left then is killed."""
        assert self.master is not None
        self.find("master")
        try:
            with suppress(psutil.NoSuchProcess):
                self.master.send_signal(signal.SIGTERM)
                self.master.wait(BOUND)
        finally:
            for process in self.seen:
                with suppress(psutil.NoSuchProcess):
                    process.kill()


def _role(process: psutil.Process) -> str:
    words = process.cmdline()
    if "lidiv_backend.learning.process" in words:
        return "trainer"
    return "worker" if "--unwatched" in words else "server" if "gunicorn" in words else ""


def _lives(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


def event(action: str, **parts: Any) -> dict[str, Any]:
    """The body of a webhook."""
    number, _, created = PROJECT.partition(".")
    made = datetime.fromtimestamp(int(created), UTC).isoformat()
    return {"action": action, "project": {"id": int(number), "created_at": made}, **parts}


def annotation_event(
    number: int, task: int, *, action: str = "ANNOTATION_CREATED", **changes: Any
) -> dict[str, Any]:
    """An accepted annotation of a task, with the mask that its image was painted with."""
    (item,) = IMAGES[task % len(IMAGES)].objects
    annotation = {
        "id": number,
        "task": task,
        "result": region(item.mask, identity=f"region-{number}"),
        "was_cancelled": False,
        "completed_by": 1,
        "lead_time": 1.0,
    }
    data = {"image": f"/data/upload/7/{task}.png"}
    return event(action, annotation=annotation | changes, task={"id": task, "data": data})


def click_body(task: int = 0) -> dict[str, Any]:
    """The recorded interactive request, with one click on one of our images."""
    body: dict[str, Any] = copy.deepcopy(golden.load("backend_predict_interactive")["body"])
    point = {
        "id": "point",
        "type": "keypointlabels",
        "from_name": "kp",
        "to_name": "image",
        "value": {"x": 50.0, "y": 50.0, "width": 0.3, "keypointlabels": ["Object"]},
        "is_positive": True,
        "original_width": IMAGES.width,
        "original_height": IMAGES.height,
        "image_rotation": 0,
    }
    body["params"]["context"] = {"result": [point]}
    body["project"] = PROJECT
    body["tasks"] = [{"id": task, "data": {"image": f"/data/upload/7/{task}.png"}}]
    return body


def post(url: str, body: dict[str, Any], *, secret: str = SECRET) -> int:
    """Send a webhook; gives the status, 0 where nobody answers."""
    try:
        headers = {"X-LiDiv-Secret": secret}
        return requests.post(f"{url}/webhook", json=body, headers=headers, timeout=60).status_code
    except requests.RequestException:
        return 0


@dataclass
class Annotators:
    """Post webhooks and click, and remember what was acknowledged."""

    url: str
    number: int = 0
    #: Annotation -> what was said of it, in order: lead time (None for a deletion), acknowledged.
    told: dict[int, list[tuple[float | None, bool]]] = field(default_factory=dict)
    #: Versions that answered clicks.
    served: set[str] = field(default_factory=set)

    def accept(self, task: int) -> bool:
        self.number += 1
        return self._tell(annotation_event(self.number, task, lead_time=float(self.number)))

    def do_something(self) -> bool:
        """One request of what comes in on a busy day; says whether it was acknowledged."""
        self.number += 1
        kind = self.number % 8
        known = sorted(self.told)
        if kind == 0:
            return self.click()
        if kind == 1 and known:
            number = known[self.number % len(known)]
            if self.told[number][-1][0] is None:
                return True
            return self._tell(event("ANNOTATIONS_DELETED", annotations=[{"id": number}]))
        if kind in (2, 3) and known and self.told[known[-1]][-1][0] is not None:
            return self._tell(
                annotation_event(
                    known[-1], 0, action="ANNOTATION_UPDATED", lead_time=float(self.number)
                )
            )
        return self.accept(self.number)

    def click(self) -> bool:
        with suppress(requests.RequestException):
            answer = requests.post(f"{self.url}/predict", json=click_body(), timeout=60)
            if answer.status_code == 200:
                self.served.add(answer.json()["results"][0]["model_version"])
                return True
        return False

    def _tell(self, body: dict[str, Any]) -> bool:
        if "annotations" in body:
            number, said = int(body["annotations"][0]["id"]), None
        else:
            number, said = int(body["annotation"]["id"]), float(body["annotation"]["lead_time"])
        is_acknowledged = post(self.url, body) == 201
        self.told.setdefault(number, []).append((said, is_acknowledged))
        return is_acknowledged

    def lost(self, database: str) -> list[str]:
        """What was acknowledged and is not there, nor anything that was said later."""
        engine = create_engine(database)
        with engine.connect() as connection:
            rows = connection.execute(
                text("SELECT annotation, lead_time, deleted_at IS NOT NULL FROM annotations")
            ).all()
        engine.dispose()
        stored = {number: (lead, bool(deleted)) for number, lead, deleted in rows}
        assert len(stored) == len(rows), "an annotation is there twice"
        missing = []
        for number, told in self.told.items():
            acknowledged = [place for place, (_, was) in enumerate(told) if was]
            if not acknowledged:
                continue
            possible = [said for said, _ in told[acknowledged[-1] :]]
            found = stored.get(number)
            # A deletion may be the first that the server heard of an annotation: nothing to keep.
            if (None if found is None or found[1] else found[0]) not in possible:
                missing.append(f"{number}: {found} is stored, {told} was told")
        return missing


def latest_run(database: str) -> TrainingRun | None:
    store = Store(database)
    try:
        return next(iter(RunQueue(store).runs(limit=1)), None)
    finally:
        store.close()


def verdict_of(database: str) -> TrainingRun:
    """Wait until no run waits or runs, and give the last one."""
    store = Store(database)
    queue = RunQueue(store)

    def ended() -> TrainingRun | None:
        (run,) = queue.runs(limit=1)
        return run if run.state in (RunState.DONE, RunState.FAILED) else None

    try:
        found = until(ended, "the run comes to an end")
        assert found is not None
        return found
    finally:
        store.close()


def whole_versions(folder: Path) -> set[str]:
    """The versions that are listed, each of them read; with the preset's."""
    state, preset = folder / "state", folder / "preset"
    registry = ModelRegistry(state, base=preset)
    listed = {entry.version for entry in registry.versions()}
    for version in listed:
        assert load_model(registry.source(version)).version == version
        assert (state / "models" / version / "report.json").is_file()
    load_model(registry.source(registry.pointer("shared").version))
    return listed | {load_model(preset).version}
