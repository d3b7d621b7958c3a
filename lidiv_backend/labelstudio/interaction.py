"""From the clicks of an interaction to the proposal that is showing.

Label Studio resends all clicks at every click and no mask, so the whole interaction is replayed:
a click is either a prompt, which asks the model for new proposals, or means *next proposal*. A memo
of click prefixes makes every new click one pass through the model at most.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lidiv_backend.caching import BoundedCache
from lidiv_backend.clicks import Click, validate_clicks
from lidiv_backend.errors import BadClickError
from lidiv_backend.labelstudio.engine import Engine
from lidiv_backend.observing import cache_asked
from lidiv_backend.predictor import Proposal

#: A click this close to the previous positive one means "next proposal": share of the image's
#: longer side, and at most this share of the showing mask's square root of area, so that small
#: objects can still be refined.
NEAR_IMAGE, NEAR_MASK = 0.015, 0.25
#: More clicks than this on one object are refused: each may cost a pass through the model.
MAX_CLICKS = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """What an interaction begins with, before its first click.

    Parameters
    ----------
    key
        Says everything that the start depends on.
    clicks
        Prompts that nobody clicked here: those that led to an accepted region, or stand for a
        rectangle.
    proposals
        What shows before the first click, best first.
    note
        What the annotator reads about it.
    """

    key: str = ""
    clicks: tuple[Click, ...] = ()
    proposals: tuple[Proposal, ...] = field(default=(), compare=False)
    note: str = ""

    def showing(self) -> Showing:
        """Where an interaction without a click of its own stands."""
        return Showing(
            prompts=self.clicks, proposals=self.proposals, cycling=(False,) * len(self.clicks)
        )


#: Most interactions begin with nothing.
NOTHING = Start()


@dataclass(frozen=True, kw_only=True, slots=True)
class Showing:
    """Where an interaction stands.

    Parameters
    ----------
    prompts
        The clicks that the model was given, in order.
    proposals
        What the model proposed for them, best first; empty until there is a positive click.
    index
        Which proposal is showing, from 0.
    cycling
        For each click, those of the start first, whether it meant "next proposal".
    may_grow
        Whether the model may have further proposals, which it is asked for when somebody wants
        them: they take it longer than the first mask may.
    """

    prompts: tuple[Click, ...] = ()
    proposals: tuple[Proposal, ...] = ()
    index: int = 0
    cycling: tuple[bool, ...] = ()
    may_grow: bool = False

    @property
    def shown(self) -> Proposal | None:
        """The proposal that is showing, or None."""
        return self.proposals[self.index] if self.proposals else None

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        return sum(proposal.nbytes for proposal in self.proposals)

    @property
    def text(self) -> str:
        """What the annotator reads about it."""
        or_more = " or more" if self.may_grow else ""
        return f"proposal {self.index + 1} of {len(self.proposals)}{or_more}"

    def grown(self, engine: Engine, image: Any) -> Showing:
        """The same with all the proposals that the model has."""
        if not self.may_grow:
            return self
        further = engine.look_ahead(image, self.prompts, self.proposals)
        return replace(self, proposals=(*self.proposals, *further), may_grow=False)


def means_next(click: Click, earlier: Sequence[Click], showing: Showing, longer_side: int) -> bool:
    """Tell whether a click asks for the next proposal.

    Parameters
    ----------
    click
        The new click.
    earlier
        All clicks before it.
    showing
        What they led to.
    longer_side
        Of the image, in pixels.

    Returns
    -------
    bool
        True for a positive click near the previous positive one. The points already there cannot
        be clicked again, so annotators cycle around the prompt: the distance to the latest
        positive click or to the latest positive prompt counts, whichever is smaller.
    """
    if not click.positive or showing.shown is None:
        return False
    landmarks = [
        next((other for other in reversed(clicks) if other.positive), None)
        for clicks in (earlier, showing.prompts)
    ]
    distance = min(
        (math.hypot(click.x - other.x, click.y - other.y) for other in landmarks if other),
        default=math.inf,
    )
    if distance > NEAR_IMAGE * longer_side:
        return False
    return distance <= NEAR_MASK * math.sqrt(float(showing.shown.mask.sum()))


class Interactions:
    """Replays interactions, remembering click prefixes.

    Parameters
    ----------
    max_bytes
        What the remembered masks may take.
    """

    def __init__(self, *, max_bytes: int) -> None:
        self._memo: BoundedCache[tuple[str, str, str, bool, tuple[Click, ...]], Showing] = (
            BoundedCache(max_bytes=max_bytes)
        )

    def replay(
        self,
        engine: Engine,
        image: Any,
        clicks: Sequence[Click],
        start: Start = NOTHING,
        *,
        grown: bool = False,
    ) -> Showing:
        """Follow the clicks.

        Parameters
        ----------
        engine
            The model.
        image
            The image's embedding, made by this engine.
        clicks
            All clicks so far, in pixels of the image.
        start
            What they begin with, made with this engine.
        grown
            Ask the model for all its proposals at once, not when somebody wants them.

        Returns
        -------
        Showing
            Where they lead.

        Raises
        ------
        BadClickError
            If there are too many clicks, or one is outside the image.
        """
        if len(clicks) > MAX_CLICKS:
            raise BadClickError(
                f"There are {len(clicks)} clicks on one object, more than {MAX_CLICKS}.",
                remedy="Accept the mask and correct it with the brush.",
            )
        validate_clicks(clicks, height=image.height, width=image.width)
        clicks = tuple(clicks)
        known, showing = 0, start.showing()
        for count in range(len(clicks), 0, -1):
            found = self._memo.get((image.key, engine.version, start.key, grown, clicks[:count]))
            if found is not None:
                known, showing = count, found
                break
        cache_asked("proposals", hit=known == len(clicks))
        for count in range(known + 1, len(clicks) + 1):
            before = showing
            showing = self._memo.get_or_compute(
                (image.key, engine.version, start.key, grown, clicks[:count]),
                lambda: _follow(engine, image, clicks[:count], before, grown),  # noqa: B023 - now
                size_of=lambda result: result.nbytes,
            )
        return showing


def _follow(
    engine: Engine, image: Any, clicks: tuple[Click, ...], before: Showing, grown: bool
) -> Showing:
    """Take the last of the clicks from where the others led."""
    *earlier, click = clicks
    if means_next(click, earlier, before, max(image.height, image.width)):
        if before.index + 1 == len(before.proposals):
            before = before.grown(engine, image)
        return replace(
            before,
            index=(before.index + 1) % len(before.proposals),
            cycling=(*before.cycling, True),
        )
    prompts = (*before.prompts, click)
    proposals: tuple[Proposal, ...] = ()
    may_grow = False
    # Negative clicks alone say what not to take, and there is nothing yet to take it from.
    if any(prompt.positive for prompt in prompts):
        previous = before.shown.mask if before.shown is not None else None
        proposals = tuple(engine.predict(image, prompts, previous=previous))
        may_grow = previous is None and engine.can_look_ahead(prompts, proposals)
    showing = Showing(
        prompts=prompts,
        proposals=proposals,
        cycling=(*before.cycling, False),
        may_grow=may_grow,
    )
    return showing.grown(engine, image) if grown else showing
