"""What came out of a study: Figure 6, its numbers, and what is missing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lidiv_backend.clicks import Click
from lidiv_backend.evaluation.figures import Series, draw_clicks_to_error
from lidiv_backend.evaluation.measures import Interval, bootstrap_mean
from lidiv_backend.evaluation.protocols import (
    MAX_CLICKS,
    Action,
    Method,
    intersection_over_union,
)
from lidiv_backend.evaluation.replay import masks_shown
from lidiv_backend.evaluation.tables import markdown_table, show_interval
from lidiv_backend.labelstudio.results import PlacedClick, read_saved_regions
from lidiv_backend.learning.store import Store, StoredAnnotation, StoredAnswer
from lidiv_backend.user_study.plan import StudyPlan, StudyTask, read_object
from lidiv_backend.user_study.project import StudyProjects

#: The paper's participants stopped at this IoU.
WANTED_IOU = 0.85
#: Jaccard errors at which Figure 6 counts clicks.
_ERRORS = tuple(round(0.05 * step, 2) for step in range(1, 13))
_COLOURS = ("#2ca02c", "#9467bd", "#d62728", "#1f4e9c", "#b8860b", "#17a2b8")


@dataclass(frozen=True, kw_only=True)
class Done:
    """A task that a participant finished.

    Parameters
    ----------
    task
        Which.
    clicks
        In pixels, without those that asked for another proposal.
    steps_after
        How many of the latter followed each click.
    seconds
        Spent on the task, as Label Studio measured it; None where it did not.
    model_version
        That answered.
    """

    task: StudyTask
    clicks: tuple[Click, ...]
    steps_after: tuple[int, ...]
    seconds: float | None
    model_version: str

    @property
    def steps(self) -> int:
        """How often another proposal was asked for."""
        return sum(self.steps_after)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A finished task in numbers.

    Parameters
    ----------
    done
        What the participant did.
    actions
        Clicks and steps to other proposals, with the IoU with the wanted mask after each.
    """

    done: Done
    actions: tuple[Action, ...]

    @property
    def ious(self) -> tuple[float, ...]:
        """IoU after each click, before any step that followed it."""
        return tuple(action.iou for action in self.actions if not action.stepped)

    def clicks_to(self, iou: float) -> int:
        """Clicks until an IoU was reached, also by a step; `MAX_CLICKS` if it never was."""
        clicks = 0
        for action in self.actions:
            clicks += not action.stepped
            if action.iou >= iou:
                return clicks
        return MAX_CLICKS

    def actions_to(self, iou: float) -> int:
        """Clicks and steps until an IoU was reached; `MAX_CLICKS` at most, or if it never was."""
        found = next((each.actions for each in self.actions if each.iou >= iou), MAX_CLICKS)
        return min(found, MAX_CLICKS)

    def reached(self, iou: float) -> bool:
        """Whether an IoU was reached."""
        return any(action.iou >= iou for action in self.actions)


def collect(
    store: Store, plan: StudyPlan, made: StudyProjects, folder: Path
) -> tuple[list[Done], list[str]]:
    """Find what participants clicked.

    Parameters
    ----------
    store
        The database of the backends.
    plan, made
        The study, and where it is in Label Studio.
    folder
        With its pictures.

    Returns
    -------
    list of Done
        In the order of the plan.
    list of str
        What is missing, a sentence each.
    """
    by_task = {
        (int(annotation.project.partition(".")[0]), annotation.task): annotation
        for annotation in store.accepted_annotations(None)
        if annotation.project.partition(".")[0].isdecimal()
    }
    found, missing = [], []
    for task in plan.tasks:
        annotation = by_task.get((made.projects[task.model], made.tasks[task.key]))
        if annotation is None:
            missing.append(f"{task.key}: not done")
            continue
        answer = _last_answer(store, annotation)
        if answer is None:
            missing.append(f"{task.key}: its mask was not made by clicks")
            continue
        rgb, _ = read_object(folder, task.object)
        found.append(_done(task, annotation, answer, rgb.shape[:2]))
    return found, missing


def _last_answer(store: Store, annotation: StoredAnnotation) -> StoredAnswer | None:
    """The answer behind the last region that was made by clicks."""
    regions = [region.id for region in read_saved_regions(annotation.result).regions if region.id]
    answers = store.answers(regions)
    own = [answers[region] for region in regions if region in answers]
    return next((a for a in reversed(own) if a.project == annotation.project), None)


def _done(
    task: StudyTask, annotation: StoredAnnotation, answer: StoredAnswer, size: Sequence[int]
) -> Done:
    height, width = size
    clicks: list[Click] = []
    steps_after: list[int] = []
    for click in answer.clicks:
        # There is something to step on from only once there was a click.
        if click.next:
            steps_after[-1] += 1
            continue
        placed = PlacedClick(id=click.id, x=click.x, y=click.y, positive=click.positive)
        clicks.append(placed.in_pixels(height=height, width=width))
        steps_after.append(0)
    return Done(
        task=task,
        clicks=tuple(clicks),
        steps_after=tuple(steps_after),
        seconds=annotation.lead_time,
        model_version=answer.model_version,
    )


def measure(
    done: Iterable[Done], folder: Path, load: Callable[[str], Method]
) -> Iterator[Measured]:
    """Make every click and step again: the model gives the masks that the participant saw.

    Parameters
    ----------
    done
        What participants did.
    folder
        With the study's pictures.
    load
        Gives the method of a model's label.
    """
    for entry in done:
        if not entry.clicks:
            continue
        rgb, mask = read_object(folder, entry.task.object)
        clicks, steps_after = entry.clicks[:MAX_CLICKS], entry.steps_after[:MAX_CLICKS]
        shown = masks_shown(load(entry.task.model), rgb, clicks, steps_after)
        stepped = [place > 0 for steps in steps_after for place in range(1 + steps)]
        yield Measured(
            done=entry,
            actions=tuple(
                Action(actions=number, iou=intersection_over_union(found, mask), stepped=step)
                for number, (found, step) in enumerate(zip(shown, stepped, strict=True), start=1)
            ),
        )


def figure_6(plan: StudyPlan, measured: Sequence[Measured]) -> bytes:
    """Draw the clicks and steps that it took to come down to an error, a PNG."""
    series = []
    for number, model in enumerate(plan.models):
        own = [entry for entry in measured if entry.done.task.model == model.label]
        points = [(error, _actions(own, 1 - error)) for error in _ERRORS]
        if own:
            series.append(
                Series(
                    name=model.label,
                    colour=_COLOURS[number % len(_COLOURS)],
                    points=tuple(points),
                )
            )
    return draw_clicks_to_error(series)


def _clicks(measured: Sequence[Measured], iou: float) -> Interval:
    return bootstrap_mean(np.array([entry.clicks_to(iou) for entry in measured], dtype=float))


def _actions(measured: Sequence[Measured], iou: float) -> Interval:
    return bootstrap_mean(np.array([entry.actions_to(iou) for entry in measured], dtype=float))


def render(plan: StudyPlan, measured: Sequence[Measured], missing: Sequence[str]) -> str:
    """Write the outcome as Markdown."""
    rows = []
    for model in plan.models:
        own = [entry for entry in measured if entry.done.task.model == model.label]
        seconds = [entry.done.seconds for entry in own if entry.done.seconds is not None]
        share = np.mean([entry.reached(WANTED_IOU) for entry in own]) if own else math.nan
        rows.append(
            (
                model.label,
                str(len(own)),
                show_interval(_clicks(own, WANTED_IOU)),
                f"{100 * share:.0f} %" if own else "-",
                f"{np.mean([entry.actions[-1].iou for entry in own]):.3f}" if own else "-",
                f"{np.mean([entry.done.steps for entry in own]):.2f}" if own else "-",
                f"{np.median(seconds):.0f}" if seconds else "-",
                show_interval(_actions(own, WANTED_IOU)),
            )
        )
    header = (
        "model",
        "tasks done",
        f"clicks to {100 * WANTED_IOU:.0f} % IoU (95 % interval)",
        "reached",
        "last IoU",
        "steps to other proposals",
        "seconds (median)",
        f"actions to {100 * WANTED_IOU:.0f} % IoU (95 % interval)",
    )
    participants = len({task.participant for task in plan.tasks})
    parts = [
        f"# User study\n\n{participants} participants, {len(plan.objects)} objects, "
        f"{len(plan.tasks)} tasks, seed {plan.seed}. Who never reached "
        f"{100 * WANTED_IOU:.0f} % counts {MAX_CLICKS} clicks. Masks in between come from the same "
        "clicks and steps to other proposals, made again on the same model. Actions, which the "
        "figure counts, are clicks and steps alike.",
        markdown_table(header, rows),
        "![Actions against error](figure-6.png)",
    ]
    if missing:
        parts.append("## Missing\n\n" + "\n".join(f"- {reason}" for reason in missing))
    return "\n\n".join(parts) + "\n"


def as_json(
    plan: StudyPlan,
    measured: Sequence[Measured],
    missing: Sequence[str],
    versions: Mapping[str, str],
) -> str:
    """Write the same as JSON, every task included."""
    summaries: dict[str, Any] = {}
    for model in plan.models:
        own = [entry for entry in measured if entry.done.task.model == model.label]
        if own:
            summaries[model.label] = {
                "tasks": len(own),
                "version": versions.get(model.label),
                "clicks": asdict(_clicks(own, WANTED_IOU)),
                "actions": asdict(_actions(own, WANTED_IOU)),
                "clicks_to_error": {
                    f"{error:.2f}": asdict(_clicks(own, 1 - error)) for error in _ERRORS
                },
                "actions_to_error": {
                    f"{error:.2f}": asdict(_actions(own, 1 - error)) for error in _ERRORS
                },
            }
    tasks = [
        {
            **asdict(entry.done),
            "steps": entry.done.steps,
            "ious": entry.ious,
            "actions": [asdict(action) for action in entry.actions],
        }
        for entry in measured
    ]
    return json.dumps(
        {"seed": plan.seed, "models": summaries, "tasks": tasks, "missing": list(missing)},
        indent=1,
        allow_nan=False,
    )
