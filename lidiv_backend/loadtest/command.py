"""The command `lidiv loadtest`: how many annotators this machine bears.

It starts a backend of its own with the real gunicorn, a small server of photographs, and Locust,
which plays annotators in the words of Label Studio's own requests. All of it is on the loopback
address, and ends after the time that was asked for.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import requests
from tqdm import tqdm

from lidiv_backend.demo.services import (
    RunningService,
    Service,
    ServiceError,
    throwaway_environment,
)
from lidiv_backend.errors import BadRequestError, LidivError
from lidiv_backend.labelstudio.connect import recommended_label_config
from lidiv_backend.loadtest import report
from lidiv_backend.loadtest.balancer import balancer
from lidiv_backend.loadtest.bodies import PROJECT, PlayedClick, PlayedTask, predict_body
from lidiv_backend.loadtest.photos import UPLOADS, PhotoHost, photo_host, photographs
from lidiv_backend.loadtest.plan import VARIABLE, Plan
from lidiv_backend.measured import insert_measured

#: A click that failed is made again so often, see `lidiv_backend.loadtest.annotators`.
ATTEMPTS = 3
#: Seconds until a model is loaded, at most.
READY_SECONDS = 300.0
#: Options that change what is measured.
_MEASURED = (
    *("ramp", "kill_after", "annotators", "seconds", "thought", "image_seconds", "ramp_step"),
    *("ramp_seconds", "limit", "down", "warm_up", "learn", "preset", "device", "data"),
    "longer_side",
)
# After the time is over, what was asked may be answered so long.
_ENDING_SECONDS = 30.0
_SAMPLE_SECONDS = 1.0
#: Percent of the image away from an object's middle, and whether positive.
_WARM_CLICKS = ((0.0, 0.0, True), (8.0, -10.0, True), (-12.0, 6.0, False))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments.

    Parameters
    ----------
    parser
        Takes them.
    """
    parser.add_argument(
        "--annotators", type=int, default=8, help="annotators; with --ramp the first (%(default)s)"
    )
    parser.add_argument(
        "--seconds", type=float, default=300.0, help="how long, at most (%(default)s)"
    )
    parser.add_argument(
        "--thought", type=float, default=4.0, help="seconds between two clicks (%(default)s)"
    )
    parser.add_argument(
        "--image-seconds", type=float, default=60.0, help="seconds with an image (%(default)s)"
    )
    parser.add_argument(
        "--ramp",
        action="store_true",
        help="more and more annotators, until 95 %% of the clicks take longer than --limit or one "
        "fails",
    )
    parser.add_argument(
        "--ramp-step", type=int, default=8, help="annotators more each time (%(default)s)"
    )
    parser.add_argument(
        "--ramp-seconds", type=float, default=40.0, help="seconds of a step (%(default)s)"
    )
    parser.add_argument(
        "--limit", type=float, default=1500.0, help="milliseconds of a click (%(default)s)"
    )
    parser.add_argument(
        "--kill-after",
        type=float,
        metavar="SECONDS",
        help="two replicas behind nginx; one is killed then",
    )
    parser.add_argument(
        "--down", type=float, default=10.0, help="seconds until it is started again (%(default)s)"
    )
    parser.add_argument(
        "--warm-up",
        type=int,
        default=0,
        metavar="IMAGES",
        help="so many images are opened before the annotators come, so that caches are full",
    )
    parser.add_argument("--learn", action="store_true", help="let the worker learn meanwhile")
    parser.add_argument("--preset", help="default, paper, or a folder with weights")
    parser.add_argument("--device", help="cpu, cuda, ...; chosen if not given")
    parser.add_argument("--data", type=Path, help="a folder of images to click on")
    parser.add_argument(
        "--longer-side", type=int, default=1280, help="larger images are scaled (%(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, help="keeps what was noted: requests, memory, logs, the table"
    )
    parser.add_argument("--picture", type=Path, help="draw latency and memory here (.png, .svg)")
    parser.add_argument(
        "--insert",
        type=Path,
        metavar="PAGE",
        help="put the table into this page's section 'loadtest', 'ramp' or 'replicas'",
    )


def run(args: argparse.Namespace) -> int:
    """Run the test, and print what was measured.

    Returns
    -------
    int
        0 if nothing failed that a second click did not make good, and nothing was lost.

    Raises
    ------
    LidivError
        If a part is not installed or does not start.
    """
    if find_spec("locust") is None or find_spec("psutil") is None:
        raise LidivError(
            "The annotators are played by Locust, which is not installed.",
            remedy='pip install "lidiv-backend[loadtest]"',
        )
    if args.ramp and args.kill_after is not None:
        raise BadRequestError("--ramp and --kill-after do not go together.", remedy="Take one.")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    with _folder(args.out) as folder:
        measured = _measure(args, folder)
        text = as_markdown(args, measured)
        (folder / "report.md").write_text(text + "\n", encoding="utf-8")
        picture = args.picture or (folder / "picture.png")
        report.draw(
            picture,
            measured.events,
            measured.samples,
            title=_title(args),
            marks=measured.marks,
            limit_ms=args.limit,
        )
    print(text)
    if args.insert:
        insert_measured(args.insert, section(args), text, command=command_line(args))
    return int(bool(measured.lost_clicks or measured.lost_rows))


@dataclass(kw_only=True)
class Measured:
    """What a run brought.

    Parameters
    ----------
    events, samples
        Requests and memory over time.
    marks
        What was done to the replicas, and when.
    kept
        What -> how many were acknowledged, how many of them are in the database.
    """

    events: list[report.Event]
    samples: list[report.Memory]
    marks: list[tuple[float, str]] = field(default_factory=list)
    kept: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def lost_clicks(self) -> int:
        """Requests that came to nothing, however often they were made."""
        return len(report.lost(self.events, attempts=ATTEMPTS))

    @property
    def lost_rows(self) -> int:
        """What was acknowledged and is not in the database."""
        return sum(told - found for told, found in self.kept.values())


def section(args: argparse.Namespace) -> str:
    """Name the section of a page that this kind of run has."""
    if args.kill_after is not None:
        return "replicas"
    return "ramp" if args.ramp else "loadtest"


def command_line(args: argparse.Namespace) -> str:
    """Give what has to be typed to measure this again."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    words = ["lidiv", "loadtest"]
    for name in _MEASURED:
        value = getattr(args, name)
        if value != parser.get_default(name):
            words.append(f"--{name.replace('_', '-')}")
            words += [] if value is True else [f"{value:g}" if _is_number(value) else str(value)]
    return shlex.join(words)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def as_markdown(args: argparse.Namespace, measured: Measured) -> str:
    """Make the tables and sentences that a run is told by."""
    from lidiv_backend.devices import machine

    # What came while the annotators were leaving belongs to no step.
    events = [event for event in measured.events if event.at < args.seconds]
    lines = [f"{machine()}, {_title(args)}; {_what_for(args)}:", ""]
    if args.ramp:
        most, broken = report.bearable(events, step_seconds=args.ramp_seconds, limit_ms=args.limit)
        lines += [report.steps_table(events, step_seconds=args.ramp_seconds), ""]
        told = (
            f"**{most} annotators**: up to there 95 % of the further clicks were answered within "
            f"{args.limit:g} ms, and none failed."
        )
        lines += [told if broken else f"{told} More were not played.", ""]
    else:
        lines += [report.latency_table(events), ""]
        clicks = [event for event in events if event.kind != "submit" and event.ok]
        end = max((event.at for event in events), default=1.0)
        again = sum(event.attempt > 1 for event in events)
        lines += [
            f"{60 * len(clicks) / end:.0f} clicks a minute were answered. Annotators had to click "
            f"again {again} times; {measured.lost_clicks} requests came to nothing.",
            "",
        ]
    if table := report.memory_table(measured.samples):
        lines += [table, ""]
    kept = [f"{found} of {told} {what}" for what, (told, found) in measured.kept.items()]
    lines += [f"In the database afterwards: {', '.join(kept)} that were acknowledged."]
    return "\n".join(lines).strip()


def _title(args: argparse.Namespace) -> str:
    many = (
        f"{args.annotators} annotators and more" if args.ramp else f"{args.annotators} annotators"
    )
    replicas = ", two replicas, one killed" if args.kill_after is not None else ""
    return f"{many}{replicas}"


def _what_for(args: argparse.Namespace) -> str:
    preset = args.preset or os.environ.get("LIDIV_PRESET") or "default"
    warm = f"{args.warm_up} images opened before, " if args.warm_up else ""
    return (
        f"{args.thought:g} s of thought between clicks, a new image every "
        f"{args.image_seconds:g} s, preset {preset}, learning {'on' if args.learn else 'off'}, "
        f"{warm}annotators and images on the same machine"
    )


@contextmanager
def _folder(wanted: Path | None) -> Iterator[Path]:
    if wanted is not None:
        wanted.mkdir(parents=True, exist_ok=True)
        yield wanted.resolve()
        return
    folder = Path(tempfile.mkdtemp(prefix="lidiv-loadtest-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _measure(args: argparse.Namespace, folder: Path) -> Measured:
    for old in ("events.jsonl", "memory.jsonl"):
        (folder / old).unlink(missing_ok=True)
    shutil.rmtree(folder / "state", ignore_errors=True)
    photos = photographs(folder / "photos", data=args.data, longer_side=args.longer_side)
    token, secret = secrets.token_hex(16), secrets.token_hex(16)
    with ExitStack() as cleanup:
        images = cleanup.enter_context(photo_host(photos, token=token))
        site = _Site(args, folder, images, secret)
        cleanup.callback(site.stop)
        site.start()
        plan = Plan(
            url=site.url,
            annotators=args.annotators,
            seconds=args.seconds,
            thought_seconds=args.thought,
            image_seconds=args.image_seconds,
            sizes=images.sizes,
            label_config=recommended_label_config(),
            webhook_secret=secret,
            events=str(folder / "events.jsonl"),
            step=args.ramp_step if args.ramp else 0,
            step_seconds=args.ramp_seconds,
            limit_ms=args.limit,
        )
        _warm_up(site.url, images, args.warm_up)
        plan.write(folder / "plan.json")
        try:
            began, samples, marks = _play(args, folder, site, plan)
        finally:
            (folder / "plan.json").unlink(missing_ok=True)
    if not (folder / "events.jsonl").exists():
        raise ServiceError(f"Nobody clicked. {folder / 'locust.log'} says why.")
    events = report.read_events(folder / "events.jsonl", began=began)
    measured = Measured(events=events, samples=samples, marks=marks)
    measured.kept = _kept(folder / "state", events)
    return measured


def _warm_up(url: str, images: PhotoHost, count: int) -> None:
    """Open images that no annotator will get, and click on two objects in each.

    As annotators do, so that what is kept of clicks is full as well, not of images alone.
    """
    # Annotators' images have larger numbers.
    for number in tqdm(range(1, min(count, 9999) + 1), desc="Warming up", disable=not count):
        width, height = images.sizes[number % len(images.sizes)]
        task = PlayedTask(number=number, image=f"{UPLOADS}{number}.jpg", width=width, height=height)
        for middle in (30.0, 70.0):
            clicks: list[PlayedClick] = []
            for x, y, positive in _WARM_CLICKS:
                name = f"{number}-{middle:g}-{len(clicks)}"
                clicks.append(PlayedClick(id=name, x=middle + x, y=50 + y, positive=positive))
                body = predict_body(task, clicks, recommended_label_config())
                answer = requests.post(f"{url}/predict", json=body, timeout=READY_SECONDS)
                answer.raise_for_status()


def _play(
    args: argparse.Namespace, folder: Path, site: _Site, plan: Plan
) -> tuple[float, list[report.Memory], list[tuple[float, str]]]:
    """Let the annotators come, and watch until they have gone."""
    marks: list[tuple[float, str]] = []
    samples: list[report.Memory] = []
    events = Path(plan.events)
    locust = RunningService(_locust(folder, plan))
    due: list[tuple[float, str, Callable[[], None]]] = []
    if args.kill_after is not None:
        due = [
            (args.kill_after, "killed", lambda: site.kill(0)),
            (args.kill_after + args.down, "started again", lambda: site.start_replica(0)),
        ]
    try:
        while not events.exists():
            if locust.has_ended():
                raise locust.ended()
            time.sleep(0.1)
        began = time.time()
        with (
            (folder / "memory.jsonl").open("w", encoding="utf-8") as file,
            tqdm(
                total=plan.seconds, desc="Clicking", unit="s", bar_format="{l_bar}{bar}| {n:.0f} s"
            ) as bar,
        ):
            while not locust.has_ended():
                at = time.time() - began
                if at > plan.seconds + _ENDING_SECONDS:
                    break
                while due and at >= due[0][0]:
                    _, what, work = due.pop(0)
                    work()
                    marks.append((time.time() - began, what))
                sample = report.Memory(at=at, megabytes=site.memory())
                samples.append(sample)
                file.write(json.dumps({"at": sample.at, **sample.megabytes}) + "\n")
                bar.update(min(at, plan.seconds) - bar.n)
                time.sleep(_SAMPLE_SECONDS)
        site.require_running()
    finally:
        locust.stop()
    return began, samples, marks


def _locust(folder: Path, plan: Plan) -> Service:
    script = Path(__file__).with_name("annotators.py")
    return Service(
        name="Locust",
        command=(
            *(sys.executable, "-m", "locust", "--locustfile", str(script)),
            *("--headless", "--host", plan.url, "--stop-timeout", str(int(_ENDING_SECONDS))),
            *("--only-summary", "--loglevel", "WARNING"),
        ),
        environment=os.environ | {VARIABLE: str(folder / "plan.json")},
        log_path=folder / "locust.log",
        ready_url=plan.url,
    )


def _kept(state: Path, events: list[report.Event]) -> dict[str, tuple[int, int]]:
    """Count what was acknowledged, and what of it the database has."""
    from lidiv_backend.learning.store import Store

    answers = {event.region for event in events if event.ok and event.kind != "submit"}
    submits = [int(event.region) for event in events if event.ok and event.kind == "submit"]
    store = Store(f"sqlite:///{state / 'lidiv.sqlite'}")
    try:
        found = sum(len(store.answers(part)) for part in _parts(sorted(answers)))
        annotations = sum(store.annotation(PROJECT, number) is not None for number in submits)
    finally:
        store.close()
    return {"answers": (len(answers), found), "annotations": (len(submits), annotations)}


def _parts(values: list[str], size: int = 500) -> Iterator[list[str]]:
    for begin in range(0, len(values), size):
        yield values[begin : begin + size]


class _Site:
    """The backend under test: one server, or two replicas behind nginx.

    Parameters
    ----------
    args
        The command's.
    folder
        For its state and its logs.
    images
        Where it gets images from.
    secret
        Of webhooks.
    """

    def __init__(
        self, args: argparse.Namespace, folder: Path, images: PhotoHost, secret: str
    ) -> None:
        self._args = args
        self._folder = folder
        self._images = images
        self._secret = secret
        count = 1 if args.kill_after is None else 2
        self._ports = [_free_port() for _ in range(count)]
        self._front = _free_port() if count > 1 else self._ports[0]
        self._replicas: list[RunningService | None] = [None] * count
        self._nginx: RunningService | None = None
        self._started = 0

    @property
    def url(self) -> str:
        """Where annotators' Label Studio would reach it."""
        return f"http://127.0.0.1:{self._front}"

    def start(self) -> None:
        """Start it, and wait until the model is loaded."""
        for place in range(len(self._replicas)):
            self.start_replica(place)
        for replica in self._replicas:
            if replica is not None:
                replica.wait_until_ready(seconds=READY_SECONDS)
        if len(self._ports) == 2:
            first, second = (f"127.0.0.1:{port}" for port in self._ports)
            service = balancer(self._folder / "nginx", port=self._front, backends=(first, second))
            self._nginx = RunningService(service)
            self._nginx.wait_until_ready(seconds=60)

    def start_replica(self, place: int) -> None:
        """Start a replica, and return at once."""
        self._started += 1
        port = self._ports[place]
        command = [sys.executable, "-m", "lidiv_backend.cli", "serve", "--port", str(port)]
        for name in ("preset", "device"):
            if getattr(self._args, name):
                command += [f"--{name}", str(getattr(self._args, name))]
        if not self._args.learn or place:
            command.append("--no-worker")
        self._replicas[place] = RunningService(
            Service(
                name=f"Replica {place + 1}" if len(self._ports) > 1 else "The server",
                command=tuple(command),
                environment=throwaway_environment()
                | {
                    "LIDIV_STATE": str(self._folder / "state"),
                    "LIDIV_LABEL_STUDIO_URL": self._images.url,
                    "LIDIV_LABEL_STUDIO_TOKEN": self._images.token,
                    "LIDIV_WEBHOOK_SECRET": self._secret,
                },
                log_path=self._folder / "logs" / f"server-{self._started}.log",
                ready_url=f"http://127.0.0.1:{port}/ready",
            )
        )

    def kill(self, place: int) -> None:
        """Kill a replica without warning, with all that belongs to it."""
        replica = self._replicas[place]
        if replica is not None:
            os.killpg(replica.pid, signal.SIGKILL)
            replica.stop()
            self._replicas[place] = None

    def stop(self) -> None:
        """Stop everything."""
        for service in (self._nginx, *self._replicas):
            if service is not None:
                service.stop()

    def require_running(self) -> None:
        """Make sure that nothing ended by itself.

        Raises
        ------
        ServiceError
            If something did; with the end of its log.
        """
        for service in (self._nginx, *self._replicas):
            if service is not None and service.has_ended():
                raise service.ended()

    def memory(self) -> dict[str, float]:
        """Resident memory of the server's processes and of the worker's that learns, in MB."""
        import psutil

        sizes: dict[str, float] = {}
        for place, replica in enumerate(self._replicas):
            if replica is None:
                continue
            name = f"replica {place + 1}" if len(self._replicas) > 1 else "server"
            with contextlib.suppress(psutil.Error):
                master = psutil.Process(replica.pid)
                for process in (master, *master.children(recursive=True)):
                    with contextlib.suppress(psutil.Error):
                        words = process.cmdline()
                        learns = "worker" in words or "lidiv_backend.learning.process" in words
                        whose = "learning" if learns else name
                        size = process.memory_info().rss / 1e6
                        sizes[whose] = sizes.get(whose, 0.0) + size
        return sizes


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
