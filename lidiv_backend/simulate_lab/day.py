"""The day itself: annotators click in a real Label Studio until the model has learnt from them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import requests
from tqdm import tqdm

from lidiv_backend.demo.stack import Stack, connect_project
from lidiv_backend.errors import LidivError
from lidiv_backend.labelstudio.config import parse_label_config
from lidiv_backend.labelstudio.connect import recommended_label_config
from lidiv_backend.learning.files import read_json, write_json
from lidiv_backend.learning.gate import with_masks_of
from lidiv_backend.learning.registry import SHARED
from lidiv_backend.learning.runs import RunQueue, RunState, TrainingRun
from lidiv_backend.learning.store import Store
from lidiv_backend.simulate_lab.annotator import MAX_CLICKS, Made, OpenTask, SimulatedAnnotator
from lidiv_backend.simulate_lab.material import ChosenImages
from lidiv_backend.simulate_lab.timing import ClickTimer, Timing, webhooks_in_time

#: Title of the lab's project, and its only label.
PROJECT, LABEL = "Simulated lab", "Object"
_LOOK_SECONDS = 3.0
#: Servers look for a new version when they are asked, once a second, and then load it.
_SERVED_SECONDS = 120.0
_WORK = "work.json"


class DayError(LidivError):
    """The day did not go as it should."""

    kind = "simulated lab"


@dataclass(frozen=True, kw_only=True)
class Day:
    """How the day went.

    Parameters
    ----------
    images, objects, clicks
        What was annotated, and by how many clicks.
    accepted
        Share of the objects whose mask was accepted as it was; the others got the brush.
    run
        Number of the training run.
    cause
        What set it off.
    message
        The gate's verdict in words.
    promoted
        Whether the new version went live.
    version, before
        The version that came out, and the one in use before.
    served
        The version that clicks were answered by afterwards.
    seconds
        From the run's beginning to its verdict.
    parts
        Seconds and CPU seconds of its parts, as its process noted them.
    timing
        How long clicks and webhooks took.
    """

    images: int
    objects: int
    clicks: int
    accepted: float
    run: int
    cause: str
    message: str
    promoted: bool
    version: str
    before: str
    served: str
    seconds: float
    parts: dict[str, float]
    timing: Timing = field(default_factory=Timing)


@dataclass(frozen=True, kw_only=True)
class Annotated:
    """What the annotators did.

    Parameters
    ----------
    made
        What was done to each object, also at earlier starts.
    timer
        Clicks on an image of the lab, to time that.
    before
        Seconds of such clicks before anything was annotated; empty where that was at an earlier
        start.
    """

    made: tuple[Made, ...]
    timer: ClickTimer
    before: tuple[float, ...]


def annotate(
    stack: Stack, images: ChosenImages, pictures: Path, *, poison: bool, timed: int
) -> Annotated:
    """Let annotators segment what has no annotation yet; goes on where it stopped.

    Parameters
    ----------
    stack
        The running services.
    images
        What is annotated.
    pictures
        Their files, see `lidiv_backend.simulate_lab.material.write_images`.
    poison
        Give every image the masks of the next one, drawn by the brush.
    timed
        So many clicks are timed.
    """
    connection = connect_project(stack, title=PROJECT, pictures=pictures)
    annotator = SimulatedAnnotator(
        url=stack.label_studio_url,
        token=stack.credentials.token,
        backend=connection.backend_id,
        config=parse_label_config(recommended_label_config((LABEL,))),
        label=LABEL,
        max_clicks=0 if poison else MAX_CLICKS,
    )
    work = stack.folder / _WORK
    done: dict[str, list[dict[str, Any]]] = read_json(work) if work.exists() else {}
    tasks = {
        unquote(str(task.data["image"])).rpartition("/")[2]: task
        for task in annotator.tasks(connection.project_id)
    }
    timer = _timer(annotator, tasks, images, timed)
    # Not beside the training that the last annotation sets off.
    is_over = all(task.total_annotations for task in tasks.values())
    before = () if is_over else timer.run()
    for index in tqdm(range(len(images)), desc="annotating", unit="image"):
        name = images.file_name(index)
        task = _task_of(tasks, name)
        # Label Studio has the last word: an annotation that is there is not made again.
        if task.total_annotations:
            done.setdefault(name, [])
            continue
        image = images[index]
        if poison:
            image = with_masks_of(image, images[(index + 1) % len(images)])
        done[name] = [asdict(made) for made in annotator.annotate(task.id, image)]
        write_json(work, done)
    made = tuple(Made(**made) for part in done.values() for made in part)
    return Annotated(made=made, timer=timer, before=before)


def _task_of(tasks: Mapping[str, OpenTask], name: str) -> OpenTask:
    if name not in tasks:
        raise DayError(f"Label Studio has no task for {name}.", remedy="Delete the folder.")
    return tasks[name]


def _timer(
    annotator: SimulatedAnnotator, tasks: Mapping[str, OpenTask], images: ChosenImages, count: int
) -> ClickTimer:
    height, width = images[0].rgb.shape[:2]
    task = _task_of(tasks, images.file_name(0)).id
    return ClickTimer(
        click=lambda click: annotator.timed_click(task, click, (height, width)),
        height=height,
        width=width,
        count=count,
    )


def wait_for_verdict(
    stack: Stack, *, minutes: float, timer: ClickTimer
) -> tuple[TrainingRun, tuple[float, ...]]:
    """Wait for the run that the annotations set off, showing how far it is.

    Returns
    -------
    run : TrainingRun
        It is done.
    times : tuple of float
        Seconds of clicks that were made while it trained.

    Raises
    ------
    DayError
        If it takes too long, or fails.
    """
    store = Store(f"sqlite:///{backend_state(stack) / 'lidiv.sqlite'}")
    times: tuple[float, ...] = ()
    try:
        with tqdm(desc="learning", unit="step") as bar:
            for run in _looks(RunQueue(store), minutes):
                if run is None:
                    bar.set_postfix_str("waiting for the worker")
                    continue
                bar.n = int(run.progress.get("step", 0))
                bar.set_postfix_str(run.stage or run.state.value)
                bar.refresh()
                if bar.n and run.stage == "training" and not times:
                    times = timer.run()
                if run.state is RunState.DONE:
                    return run, times
                if run.state is RunState.FAILED:
                    raise DayError(f"The run failed: {run.message}")
    finally:
        store.close()
    raise DayError(
        f"There was no verdict after {minutes:g} minutes.",
        remedy=f"The logs are in {stack.folder / 'logs'}; the same command goes on.",
    )


def _looks(queue: RunQueue, minutes: float) -> Iterator[TrainingRun | None]:
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        yield queue.last(SHARED)
        time.sleep(_LOOK_SECONDS)


def wait_until_served(stack: Stack, version: str) -> str:
    """Ask the backend which version it serves until it is the given one.

    Returns
    -------
    str
        What it serves; after a while that may still be another one.
    """
    end = time.monotonic() + _SERVED_SECONDS
    while True:
        reply = requests.get(f"{stack.backend_url}/ready", timeout=30)
        served = str(reply.json().get("model_version", "")) if reply.ok else ""
        if served == version or time.monotonic() > end:
            return served
        time.sleep(_LOOK_SECONDS)


def time_webhooks(stack: Stack) -> tuple[int, int]:
    """Ask the backend how many webhooks it answered, and how many in time."""
    reply = requests.get(f"{stack.backend_url}/metrics", timeout=30)
    reply.raise_for_status()
    return webhooks_in_time(reply.text)


def summarise(
    stack: Stack, made: Sequence[Made], images: int, run: TrainingRun, served: str, timing: Timing
) -> Day:
    """Put together how the day went."""
    began: datetime = run.created_at
    ended = run.finished_at or began
    noted = read_json(backend_state(stack) / "runs" / str(run.id) / "result.json")
    return Day(
        images=images,
        objects=len(made),
        clicks=sum(each.clicks for each in made),
        accepted=sum(not each.brushed for each in made) / max(1, len(made)),
        run=run.id,
        cause=run.cause,
        message=run.message,
        promoted=run.promoted,
        version=run.candidate or "",
        before=run.base_version or "",
        served=served,
        seconds=(ended - began).total_seconds(),
        parts={key: float(value) for key, value in noted.get("seconds", {}).items()},
        timing=timing,
    )


def backend_state(stack: Stack) -> Path:
    """The backend's state folder."""
    return stack.folder / "backend"


def write_day(path: Path, day: Day) -> None:
    """Write a day down."""
    write_json(path, asdict(day))


def read_day(path: Path) -> Day:
    """Read what `write_day` wrote.

    Raises
    ------
    DayError
        If it is damaged.
    """
    try:
        values = read_json(path)
        told = values.pop("timing")
        timing = Timing(
            before=tuple(told["before"]),
            training=tuple(told["training"]),
            webhooks=told["webhooks"],
            prompt=told["prompt"],
        )
        return Day(**values, timing=timing)
    except (AttributeError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise DayError(f"{path} is damaged.", remedy="Delete it.") from error
