"""What the annotators heard and what the server took: a table, and a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

#: Kind of request -> what the table calls it.
KINDS = {"first": "first mask of an image", "click": "further clicks", "submit": "submits"}
#: Memory is judged from here on, in seconds.
WARM_SECONDS = 60.0
_WIDTH, _HEIGHT = 9.0, 6.5


@dataclass(frozen=True, kw_only=True)
class Event:
    """A request, as `lidiv_backend.loadtest.annotators.Heard` notes it, with the run's own time."""

    kind: str
    at: float
    ms: float
    status: int
    ok: bool
    attempt: int
    annotators: int
    region: str


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Resident memory of the processes of each service at one moment.

    Parameters
    ----------
    at
        Seconds since the run began.
    megabytes
        Service -> MB; replicas that are down have none.
    """

    at: float
    megabytes: dict[str, float]


def read_events(path: Path, *, began: float) -> list[Event]:
    """Read the requests of a run, in the order in which they were sent.

    Parameters
    ----------
    path
        One JSON object a line; a line that was cut off is left out.
    began
        When the run began, seconds since 1970.
    """
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        values["at"] -= began
        found.append(Event(**values))
    return sorted(found, key=lambda event: event.at)


def percentile(events: Sequence[Event], share: float) -> float:
    """Give the time, in ms, within which a share of the answers came; nan without any."""
    times = [event.ms for event in events if event.ok]
    return float(np.percentile(times, 100 * share)) if times else float("nan")


def lost(events: Sequence[Event], *, attempts: int) -> list[Event]:
    """Requests that came to nothing, however often the annotator clicked again."""
    return [
        event
        for event in events
        if not event.ok and (event.kind == "submit" or event.attempt == attempts)
    ]


def latency_table(events: Sequence[Event]) -> str:
    """Tell of each kind of request how long its answers took, and how many failed."""
    lines = [
        "| | answered | failed | median, ms | 95 %, ms | longest, ms |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for kind, name in KINDS.items():
        these = [event for event in events if event.kind == kind]
        answered = [event for event in these if event.ok]
        numbers = [percentile(these, share) for share in (0.5, 0.95, 1.0)]
        shown = " | ".join(_number(value) for value in numbers)
        lines.append(f"| {name} | {len(answered)} | {len(these) - len(answered)} | {shown} |")
    return "\n".join(lines)


def memory_table(samples: Sequence[Memory]) -> str:
    """Tell what each service held after the first minute, at the end, and at most."""
    lines = [
        "| memory, MB | after a minute | at the end | most after the minute |",
        "|---|---:|---:|---:|",
    ]
    for name in _services(samples):
        after = [
            sample.megabytes[name]
            for sample in samples
            if sample.at >= WARM_SECONDS and name in sample.megabytes
        ]
        if after:
            early, late = np.median(after[:10]), np.median(after[-10:])
            lines.append(f"| {name} | {early:.0f} | {late:.0f} | {max(after):.0f} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def steps_table(events: Sequence[Event], *, step_seconds: float, settle: float = 10.0) -> str:
    """Tell of each step of a ramp how long answers took, but for its first seconds."""
    lines = [
        "| annotators | clicks a minute | first mask, median, ms | 95 % "
        "| further click, median, ms | 95 % | failed |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for annotators, these, seconds in steps(events, step_seconds=step_seconds, settle=settle):
        kinds = {kind: [event for event in these if event.kind == kind] for kind in KINDS}
        clicks = [event for event in kinds["first"] + kinds["click"] if event.ok]
        shown = " | ".join(
            _number(percentile(kinds[kind], share))
            for kind in ("first", "click")
            for share in (0.5, 0.95)
        )
        failed = sum(not event.ok for event in these)
        rate = 60 * len(clicks) / seconds
        lines.append(f"| {annotators} | {rate:.0f} | {shown} | {failed} |")
    return "\n".join(lines)


def steps(
    events: Sequence[Event], *, step_seconds: float, settle: float = 10.0
) -> list[tuple[int, list[Event], float]]:
    """Split a ramp into its steps: annotators, their requests, and over how many seconds.

    A step that was hardly begun is left out.
    """
    found: list[tuple[int, list[Event], float]] = []
    end = max((event.at for event in events), default=0.0)
    for number in range(int(end // step_seconds) + 1):
        first, last = number * step_seconds + settle, min((number + 1) * step_seconds, end)
        these = [event for event in events if first <= event.at < last]
        if last - first >= step_seconds / 3 and these:
            annotators = int(np.median([event.annotators for event in these]))
            if found and annotators <= found[-1][0]:
                break  # they are leaving
            found.append((annotators, these, last - first))
    return found


def bearable(
    events: Sequence[Event], *, step_seconds: float, limit_ms: float
) -> tuple[int, int | None]:
    """Give the most annotators of a ramp who were served in time, and how many were not.

    Parameters
    ----------
    events
        Of a ramp.
    step_seconds
        Between two steps.
    limit_ms
        What the 95th percentile of further clicks may be.
    """
    most = 0
    for annotators, these, _ in steps(events, step_seconds=step_seconds):
        clicks = [event for event in these if event.kind == "click"]
        if percentile(clicks, 0.95) > limit_ms or any(not event.ok for event in these):
            return most, annotators
        most = annotators
    return most, None


def draw(
    path: Path,
    events: Sequence[Event],
    samples: Sequence[Memory],
    *,
    title: str,
    marks: Sequence[tuple[float, str]] = (),
    limit_ms: float,
) -> None:
    """Draw how long each answer took and what the services held, over time.

    Parameters
    ----------
    path
        Where to.
    events, samples
        Of the run.
    title
        What was measured.
    marks
        Seconds, and what happened then.
    limit_ms
        Drawn as a line.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for kind, colour in (("click", "tab:blue"), ("first", "tab:orange")):
        these = [event for event in events if event.kind == kind]
        above.scatter(
            [event.at for event in these if event.ok],
            [event.ms for event in these if event.ok],
            s=9,
            color=colour,
            label=KINDS[kind],
            alpha=0.7,
        )
    failed = [event for event in events if not event.ok]
    if failed:
        above.scatter(
            [event.at for event in failed],
            [max(event.ms, 1) for event in failed],
            marker="x",
            color="tab:red",
            label="failed",
        )
    above.axhline(limit_ms, color="grey", linestyle=":")
    above.set_yscale("log")
    above.set_ylabel("answer, ms")
    above.set_title(title)
    counts = above.twinx()
    counts.step(
        [event.at for event in events],
        [event.annotators for event in events],
        color="grey",
        linewidth=0.8,
        where="post",
    )
    counts.set_ylim(bottom=0)
    counts.set_ylabel("annotators", color="grey")
    above.legend(loc="upper left", fontsize="small")
    for name in _services(samples):
        having = [sample for sample in samples if name in sample.megabytes]
        times = [sample.at for sample in having]
        below.plot(times, [sample.megabytes[name] for sample in having], label=name)
    below.set_ylim(bottom=0)
    below.set_ylabel("memory, MB")
    below.set_xlabel("seconds")
    below.legend(loc="lower right", fontsize="small")
    for at, what in marks:
        for axes in (above, below):
            axes.axvline(at, color="tab:red", linestyle="--", linewidth=0.8)
        below.text(at, below.get_ylim()[1] * 0.97, f" {what}", color="tab:red", va="top", size=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _services(samples: Sequence[Memory]) -> list[str]:
    return list(dict.fromkeys(name for sample in samples for name in sample.megabytes))


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.0f}"
