"""Clicks that annotators made, rerun against another model: clicks saved or lost.

The clicks answered the masks of the model of that day, so a rerun is an estimate: another model
would have been clicked elsewhere. It is the nearest thing to asking the annotators again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lidiv_backend.clicks import Click
from lidiv_backend.evaluation.measures import Interval, bootstrap_mean
from lidiv_backend.evaluation.protocols import Method, intersection_over_union

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
    """

    name: str
    rgb: NDArray[np.uint8]
    clicks: tuple[Click, ...]
    accepted: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What a model would have made of an interaction.

    Parameters
    ----------
    name
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
        image = method.embed(interaction.rgb)
        previous: NDArray[np.bool_] | None = None
        ious = []
        for count in range(1, len(interaction.clicks) + 1):
            proposals = method.predict(image, interaction.clicks[:count], previous=previous)
            previous = proposals[0].mask
            ious.append(intersection_over_union(previous, interaction.accepted))
        yield Replayed(
            name=interaction.name,
            clicks=len(interaction.clicks),
            ious=tuple(ious),
            needed=next((k for k, iou in enumerate(ious, 1) if iou >= accepted_iou), None),
        )


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
