"""Simulated annotators: one object, one method, one protocol, every click and what it brought.

Two protocols place the clicks. ``sampled`` is the paper's (Section 5.1, Eq. 8): the first click is
drawn on the object in proportion to the distance to its boundary, each later one likewise over the
pixels that are still wrong. ``centre`` is the later literature's: the peak of the distance
transform of the larger error region, nothing random. In both, ignored pixels take no click and
count neither way, and no pixel is clicked twice.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lidiv_backend.clicks import Click
from lidiv_backend.errors import DataError
from lidiv_backend.predictor import Proposal
from lidiv_backend.records import ObjectMask
from lidiv_backend.training.simulation import centre_click, sample_first_click, sample_next_click

#: At most so many clicks; a target that is never reached counts so many (Section 5.1).
MAX_CLICKS = 20


class Method(Protocol):
    """Anything that turns clicks into proposals: a `Predictor`, a classical system, your own.

    Optional attributes: ``version`` (str, names weights and parameters; results of different
    versions are never mixed), ``needs_both_signs`` (bool, True for systems that need a positive
    and a negative click before their first result), ``expects_iou`` (bool, True where a proposal's
    score is the IoU that the method expects of it) and ``look_ahead`` (gives further alternatives,
    as `Predictor.look_ahead`; nobody waits for them who does not ask, so they are no part of a
    click's time).
    """

    def embed(self, rgb: NDArray[np.uint8], /) -> Any:
        """Compute what no click changes, from a uint8 (H, W, 3) image."""

    def predict(
        self, image: Any, clicks: Sequence[Click], previous: NDArray[np.bool_] | None = None
    ) -> Sequence[Proposal]:
        """Give proposals, best first, for all the clicks so far."""


class ClickProtocol(StrEnum):
    """How simulated clicks are placed."""

    CENTRE = "centre"
    SAMPLED = "sampled"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtocolSettings:
    """What, besides method and data, decides the outcome of a run.

    Parameters
    ----------
    protocol
        How clicks are placed.
    max_clicks
        Clicks at most.
    stop_at
        The annotator is content with this IoU and stops; curves hold their last value from there.
    actions
        Also run the annotator who may step to another proposal.
    """

    protocol: ClickProtocol = ClickProtocol.CENTRE
    max_clicks: int = MAX_CLICKS
    stop_at: float = 0.95
    actions: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What a method answered to one click.

    Parameters
    ----------
    clicks
        How many clicks had been made.
    iou
        IoU of the selected (first) proposal.
    oracle
        IoU of the best of all masks that the annotator can step to, those that the method looks
        ahead to included.
    seconds
        Time of this prediction, without the embedding.
    proposals
        How many masks the annotator could step to, the selected one included.
    expected
        IoU that the method expected of the selected proposal; None if it does not say.
    """

    clicks: int
    iou: float
    oracle: float
    seconds: float
    proposals: int
    expected: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """One thing that the annotator did who may also step between proposals.

    Parameters
    ----------
    actions
        How many actions there were up to and with this one.
    iou
        IoU of the mask that was showing afterwards.
    stepped
        True for a step to another proposal, False for a click.
    """

    actions: int
    iou: float
    stepped: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """All that happened to one object.

    Parameters
    ----------
    clicks
        Every click, in order.
    steps
        One entry for each result; systems that need both signs have none for the first click.
    embed_seconds
        Time to embed the image.
    actions
        The same object with steps between proposals; empty if that was not asked for.
    stop_at
        The annotator was content with this IoU.
    """

    clicks: tuple[Click, ...]
    steps: tuple[Step, ...]
    embed_seconds: float
    actions: tuple[Action, ...] = ()
    stop_at: float = 0.95


def intersection_over_union(
    mask: NDArray[np.bool_], target: NDArray[np.bool_], ignore: NDArray[np.bool_] | None = None
) -> float:
    """Jaccard index of two bool (H, W) masks without ignored pixels; 1 where both are empty."""
    if ignore is not None:
        mask, target = mask & ~ignore, target & ~ignore
    union = int(np.count_nonzero(mask | target))
    return int(np.count_nonzero(mask & target)) / union if union else 1.0


class _Annotator:
    """Places clicks for one object; the same state of the work always gets the same click."""

    def __init__(
        self, target: ObjectMask, *, protocol: ClickProtocol, seed: int, identity: str
    ) -> None:
        self.ignore = target.ignore
        self.target = target.mask if target.ignore is None else target.mask & ~target.ignore
        self.protocol = protocol
        self._entropy = (seed, zlib.crc32(identity.encode()))

    def iou(self, mask: NDArray[np.bool_]) -> float:
        return intersection_over_union(mask, self.target, self.ignore)

    def next(self, shown: NDArray[np.bool_], clicks: Sequence[Click]) -> Click | None:
        """Place the next click given the mask that shows; None where no wrong pixel is left."""
        if self.protocol is ClickProtocol.CENTRE:
            return centre_click(self.target, shown, clicks, self.ignore)
        # One generator for each click, so that a run that is cut short or branches keeps its draws.
        generator = np.random.default_rng([*self._entropy, len(clicks)])
        if not clicks:
            return sample_first_click(self.target, generator, self.ignore)
        return sample_next_click(self.target, shown, clicks, generator, self.ignore)


class _Session:
    """One method at one object: predictions with their times, each computed once."""

    def __init__(self, method: Method, embedding: Any, shape: tuple[int, ...]) -> None:
        self._method = method
        self._embedding = embedding
        self._shape = shape
        self._answers: dict[tuple[Any, ...], tuple[tuple[Proposal, ...], float]] = {}

    def predict(
        self, clicks: tuple[Click, ...], shown: tuple[int, ...], previous: NDArray[np.bool_] | None
    ) -> tuple[tuple[Proposal, ...], float]:
        """Proposals and seconds; `shown` names the proposal that each earlier click refined."""
        key = (clicks, shown)
        if key not in self._answers:
            started = time.perf_counter()
            proposals = tuple(self._method.predict(self._embedding, clicks, previous=previous))
            # The annotator waits for the first mask, and a proposal may make it on demand.
            for proposal in proposals[:1]:
                _ = proposal.mask
            seconds = time.perf_counter() - started
            look_ahead = getattr(self._method, "look_ahead", None)
            if look_ahead is not None:
                proposals += tuple(look_ahead(self._embedding, clicks, proposals))
            if not proposals:
                raise DataError(
                    "The method returned no proposal.", remedy="Return at least one from predict."
                )
            for proposal in proposals:
                if proposal.mask.shape != self._shape:
                    raise DataError(
                        f"The method returned a mask of shape {proposal.mask.shape} for an image "
                        f"of shape {self._shape}.",
                        remedy="Return masks of the image's own size.",
                    )
            self._answers[key] = proposals, seconds
        return self._answers[key]


def run_object(
    method: Method,
    embedding: Any,
    target: ObjectMask,
    *,
    settings: ProtocolSettings,
    seed: int = 0,
    identity: str = "",
    embed_seconds: float = 0.0,
) -> Trace:
    """Segment one object by simulated clicks.

    A system with ``needs_both_signs`` gets a positive click on the object and a negative one on
    the rest, placed by the same rule as if everything had been selected, before its first result;
    both count.

    Parameters
    ----------
    method
        What is measured.
    embedding
        What ``method.embed`` gave for the image.
    target
        The object; its ignored pixels count neither way.
    settings
        The protocol.
    seed
        Of the ``sampled`` protocol; ``centre`` has nothing random.
    identity
        Names the object among all data sets, so that objects of one seed differ in their draws.
    embed_seconds
        How long the embedding took; kept with the trace.

    Returns
    -------
    Trace
        Every click, what each brought, and how long it took.

    Raises
    ------
    DataError
        If the object has no pixel that counts, or the method breaks its contract.
    """
    annotator = _Annotator(
        target, protocol=settings.protocol, seed=seed, identity=f"{identity}/{target.name}"
    )
    if not annotator.target.any():
        raise DataError(
            f"Object {target.name} has no pixel outside the ignored region.",
            remedy="Leave it out or correct its mask.",
        )
    session = _Session(method, embedding, target.mask.shape)
    clicks = _opening(annotator, both_signs=getattr(method, "needs_both_signs", False))
    opening = clicks
    expects_iou = getattr(method, "expects_iou", False)
    previous: NDArray[np.bool_] | None = None
    steps: list[Step] = []
    while True:
        proposals, seconds = session.predict(clicks, (0,) * len(steps), previous)
        ious = [annotator.iou(proposal.mask) for proposal in proposals]
        steps.append(
            Step(
                clicks=len(clicks),
                iou=ious[0],
                oracle=max(ious),
                seconds=seconds,
                proposals=len(proposals),
                expected=proposals[0].score if expects_iou else None,
            )
        )
        if ious[0] >= settings.stop_at or len(clicks) >= settings.max_clicks:
            break
        previous = proposals[0].mask
        click = annotator.next(previous, clicks)
        if click is None:
            break
        clicks = (*clicks, click)
    return Trace(
        clicks=clicks,
        steps=tuple(steps),
        embed_seconds=embed_seconds,
        actions=_run_actions(session, annotator, opening, settings) if settings.actions else (),
        stop_at=settings.stop_at,
    )


def opening_clicks(
    target: ObjectMask,
    *,
    protocol: ClickProtocol,
    both_signs: bool,
    seed: int = 0,
    identity: str = "",
) -> tuple[Click, ...]:
    """Place the clicks before the first result.

    Parameters
    ----------
    target
        The object.
    protocol, seed, identity
        As in `run_object`.
    both_signs
        A positive and a negative click instead of a positive one.

    Raises
    ------
    DataError
        If there is no place for a negative click.
    """
    identity = f"{identity}/{target.name}"
    annotator = _Annotator(target, protocol=protocol, seed=seed, identity=identity)
    return _opening(annotator, both_signs=both_signs)


def _opening(annotator: _Annotator, *, both_signs: bool) -> tuple[Click, ...]:
    first = annotator.next(np.zeros_like(annotator.target), ())
    if first is None:  # The object is not empty, so there is a place for the first click.
        raise AssertionError("no place for the first click")
    if not both_signs:
        return (first,)
    second = annotator.next(np.ones_like(annotator.target), (first,))
    if second is None:
        raise DataError(
            "The object fills the whole image, so there is no place for a negative click.",
            remedy="Leave it out.",
        )
    return first, second


def _run_actions(
    session: _Session,
    annotator: _Annotator,
    opening: tuple[Click, ...],
    settings: ProtocolSettings,
) -> tuple[Action, ...]:
    """Segment the object again, now with steps between proposals.

    The annotator is greedy and sees all proposals: from the mask that shows they either step on to
    a proposal (each step to the next one is an action, and behind the last comes the first again)
    or click where that mask is wrong, whichever gains most IoU for each action; a tie is a step.
    A click refines the proposal that shows. What a click would bring is known from trying it, so
    this is what the alternatives are worth to somebody who uses them well.
    """
    clicks = opening
    shown_before: tuple[int, ...] = ()
    proposals, _ = session.predict(clicks, shown_before, None)
    shown = 0
    iou = annotator.iou(proposals[0].mask)
    done = [Action(actions=len(clicks), iou=iou, stepped=False)]
    while iou < settings.stop_at and done[-1].actions < settings.max_clicks:
        left = settings.max_clicks - done[-1].actions
        gains = [
            ((annotator.iou(proposal.mask) - iou) / cost, -cost, index)
            for index, proposal in enumerate(proposals)
            if 0 < (cost := (index - shown) % len(proposals)) <= left
        ]
        best_gain, minus_cost, best = max(gains, default=(0.0, 0, shown))
        mask = proposals[shown].mask
        click = annotator.next(mask, clicks)
        answer: tuple[Proposal, ...] = ()
        if click is not None:
            answer, _ = session.predict((*clicks, click), (*shown_before, shown), mask)
        click_gain = annotator.iou(answer[0].mask) - iou if answer else 0.0
        stepped = best_gain > 0 and best_gain >= click_gain
        if stepped:
            shown, cost = best, -minus_cost
        elif click is not None:
            clicks, shown_before = (*clicks, click), (*shown_before, shown)
            proposals, shown, cost = answer, 0, 1
        else:
            break
        iou = annotator.iou(proposals[shown].mask)
        done.append(Action(actions=done[-1].actions + cost, iou=iou, stepped=stepped))
    return tuple(done)
