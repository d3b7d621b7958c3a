"""Clicks that annotators made, rerun against another model: clicks saved or lost.

The clicks answered the masks of the model of that day, so a rerun is an estimate: another model
would have been clicked elsewhere. It is the nearest thing to asking the annotators again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lidiv_backend.clicks import Click
from lidiv_backend.errors import DataError
from lidiv_backend.evaluation.measures import Interval, bootstrap_mean
from lidiv_backend.evaluation.protocols import Method, intersection_over_union
from lidiv_backend.evaluation.tables import markdown_table, show_interval

#: A mask that agrees so well with the accepted one would have been accepted.
ACCEPTED_IOU = 0.9


@dataclass(frozen=True, kw_only=True)
class Interaction:
    """One accepted object, as an annotator made it.

    Parameters
    ----------
    name
        For people.
    rgb
        uint8 (H, W, 3), the image, upright.
    clicks
        All clicks, in order; at least one.
    accepted
        bool (H, W), the mask that was accepted.
    project, label
        Where it belongs; may be empty.
    """

    name: str
    rgb: NDArray[np.uint8]
    clicks: tuple[Click, ...]
    accepted: NDArray[np.bool_]
    project: str = ""
    label: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What a model would have made of an interaction.

    Parameters
    ----------
    name, project, label
        Of the interaction.
    clicks
        How many the annotator made.
    ious
        Agreement of the selected mask with the accepted one after each click.
    needed
        Clicks until the selected mask would have been accepted; None if it never was.
    """

    name: str
    clicks: int
    ious: tuple[float, ...]
    needed: int | None
    project: str = ""
    label: str = ""

    @property
    def saved(self) -> int:
        """Clicks saved; -1 where the clicks did not suffice, for at least one more is needed."""
        return -1 if self.needed is None else self.clicks - self.needed


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaySummary:
    """All interactions together.

    Parameters
    ----------
    interactions
        How many.
    clicks
        Made by the annotators, in all.
    saved
        Mean number of clicks saved for each object, see `Replayed.saved`.
    sufficed
        Share of objects for which the annotator's clicks suffice, in [0, 1].
    """

    interactions: int
    clicks: int
    saved: Interval
    sufficed: float


def replay(
    method: Method, interactions: Iterable[Interaction], *, accepted_iou: float = ACCEPTED_IOU
) -> Iterator[Replayed]:
    """Rerun clicks against a model.

    Parameters
    ----------
    method
        The model.
    interactions
        What annotators did.
    accepted_iou
        IoU with the accepted mask at which the annotator would have stopped.
    """
    for interaction in interactions:
        ious = [
            intersection_over_union(mask, interaction.accepted)
            for mask in masks_shown(method, interaction.rgb, interaction.clicks)
        ]
        yield Replayed(
            name=interaction.name,
            project=interaction.project,
            label=interaction.label,
            clicks=len(interaction.clicks),
            ious=tuple(ious),
            needed=next((k for k, iou in enumerate(ious, 1) if iou >= accepted_iou), None),
        )


def masks_shown(
    method: Method,
    rgb: NDArray[np.uint8],
    clicks: Sequence[Click],
    steps: Sequence[int] | None = None,
) -> Iterator[NDArray[np.bool_]]:
    """Give the mask that shows after each click and each step, as the server would.

    A click refines the mask that shows. Behind the last proposal of the first mask come those that
    the model looks ahead to, if it does, and then the first again.

    Parameters
    ----------
    method
        The model.
    rgb
        uint8 (H, W, 3), the image, upright.
    clicks
        All clicks, in order.
    steps
        How many steps to the next proposal followed each click; none if not given.

    Yields
    ------
    ndarray
        bool (H, W); empty before the first positive click.
    """
    image = method.embed(rgb)
    shown: NDArray[np.bool_] | None = None
    following = (0,) * len(clicks) if steps is None else steps
    for count, further in enumerate(following, start=1):
        made = clicks[:count]
        # Negative clicks alone say what not to take, and there is nothing yet to take it from.
        if not any(click.positive for click in made):
            yield np.zeros(rgb.shape[:2], np.bool_)
            continue
        proposals = list(method.predict(image, made, previous=shown))
        look_ahead = getattr(method, "look_ahead", None) if shown is None else None
        index = 0
        shown = proposals[index].mask
        yield shown
        for _ in range(further):
            if index + 1 == len(proposals) and look_ahead is not None:
                proposals += look_ahead(image, made, proposals)
                look_ahead = None
            index = (index + 1) % len(proposals)
            shown = proposals[index].mask
            yield shown


def summarise_replay(replayed: Sequence[Replayed]) -> ReplaySummary:
    """Put reruns into numbers."""
    return ReplaySummary(
        interactions=len(replayed),
        clicks=sum(entry.clicks for entry in replayed),
        saved=bootstrap_mean(np.array([entry.saved for entry in replayed], dtype=float)),
        sufficed=float(np.mean([entry.needed is not None for entry in replayed]))
        if replayed
        else float("nan"),
    )


class ReplayLog:
    """Reruns that were finished, so that a command that was stopped goes on.

    Parameters
    ----------
    folder
        Gets ``replayed.jsonl``; None keeps nothing.

    Raises
    ------
    DataError
        If the file holds something else; a last line that a crash cut off is left out.
    """

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / "replayed.jsonl"
        self._known: dict[tuple[str, str], Replayed] = {}
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        text = self._path.read_text(encoding="utf-8") if self._path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                values = json.loads(line)
                key = values.pop("key")
                replayed = Replayed(**{**values, "ious": tuple(values["ious"])})
            except (ValueError, TypeError, KeyError) as error:
                raise DataError(
                    f"Line {number} of {self._path} is no rerun: {error!r}.",
                    remedy="Write to another folder.",
                ) from error
            self._known[key, replayed.name] = replayed
        if whole != text:
            self._path.write_text(whole, encoding="utf-8")

    def find(self, key: str, name: str) -> Replayed | None:
        """Look up a rerun of a method's version by the interaction's name."""
        return self._known.get((key, name))

    def append(self, key: str, replayed: Replayed) -> None:
        """Keep a rerun."""
        self._known[key, replayed.name] = replayed
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, **asdict(replayed)}) + "\n")


def _groups(replayed: Sequence[Replayed]) -> dict[str, list[Replayed]]:
    """All of them, and by project and label where there are several."""
    groups = {"all": list(replayed)}
    for what in ("project", "label"):
        values = sorted({getattr(entry, what) for entry in replayed})
        if len(values) > 1:
            for value in values:
                title = f"{what} {value or '(none)'}"
                groups[title] = [entry for entry in replayed if getattr(entry, what) == value]
    return groups


def render_replay(results: Mapping[str, Sequence[Replayed]], *, accepted_iou: float) -> str:
    """Write reruns of several methods as Markdown.

    Parameters
    ----------
    results
        By the method's label, in the order in which they are to appear.
    accepted_iou
        As in `replay`.
    """
    rows = []
    for label, replayed in results.items():
        for title, group in _groups(replayed).items():
            summary = summarise_replay(group)
            rows.append(
                (
                    label,
                    title,
                    str(summary.interactions),
                    str(summary.clicks),
                    show_interval(summary.saved),
                    f"{100 * summary.sufficed:.1f} %",
                )
            )
    header = (
        "method",
        "masks of",
        "masks",
        "clicks made",
        "clicks saved per mask (95 % interval)",
        "clicks suffice",
    )
    return (
        "Clicks that annotators made, rerun: a mask is taken to be accepted as soon as it agrees "
        f"with the accepted one to an IoU of {accepted_iou:g}. Where the clicks do not suffice, "
        "one more is counted, the least that is needed. The clicks answered other masks than "
        "these, so this is an estimate.\n\n" + markdown_table(header, rows) + "\n"
    )


def replay_json(results: Mapping[str, Sequence[Replayed]], *, accepted_iou: float) -> str:
    """Write the same as JSON, every rerun included."""
    return json.dumps(
        {
            "accepted_iou": accepted_iou,
            "methods": {
                label: {
                    "summaries": {
                        title: asdict(summarise_replay(group))
                        for title, group in _groups(replayed).items()
                    },
                    "masks": [{**asdict(entry), "saved": entry.saved} for entry in replayed],
                }
                for label, replayed in results.items()
            },
        },
        indent=1,
        allow_nan=False,
    )
