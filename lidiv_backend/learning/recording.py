"""What the server answers, written down for learning without ever getting in its way."""

from __future__ import annotations

import logging

from lidiv_backend.labelstudio.beginnings import InteractionKey
from lidiv_backend.labelstudio.results import PlacedClick
from lidiv_backend.labelstudio.service import Answer
from lidiv_backend.learning.store import (
    Store,
    StoredAnswer,
    StoredClick,
    StoredProposal,
    StoreError,
)

_LOG = logging.getLogger(__name__)


class AnswerLog:
    """Keeps answers in a store; a `lidiv_backend.labelstudio.service.Recorder`.

    An annotator gets the mask also when the database is full or gone: that is logged.

    Parameters
    ----------
    store
        The database.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def pinned_version(self, key: InteractionKey) -> str | None:
        """Find the model version that an interaction began with; None if it is new."""
        if not key.first_click:
            return None
        try:
            return self._store.first_version(
                project=key.project, task=key.task, first_click=key.first_click
            )
        except StoreError as error:
            _LOG.error("The model version of an interaction cannot be looked up. %s", error)
            return None

    def prompts_of(self, project: str, region_id: str) -> tuple[PlacedClick, ...]:
        """Give the prompts that led to a region; none if it is not from here."""
        try:
            answer = self._store.answer(region_id) if region_id else None
        except StoreError as error:
            _LOG.error("The clicks of a region cannot be looked up. %s", error)
            return ()
        if answer is None or answer.project != project:
            return ()
        return tuple(
            PlacedClick(id=click.id, x=click.x, y=click.y, positive=click.positive)
            for click in answer.clicks
            if not click.next
        )

    def keep_answer(self, answer: Answer) -> None:
        """Keep an answer."""
        clicks = zip(answer.prompt.clicks, answer.showing.cycling, strict=True)
        stored = StoredAnswer(
            region_id=answer.region_id,
            project=answer.key.project,
            task=answer.key.task,
            first_click=answer.key.first_click,
            interactive=answer.interactive,
            to_name=answer.prompt.target.to_name,
            label=answer.prompt.target.label,
            height=answer.height,
            width=answer.width,
            clicks=tuple(
                StoredClick(id=click.id, x=click.x, y=click.y, positive=click.positive, next=next_)
                for click, next_ in clicks
            ),
            proposals=tuple(
                StoredProposal(score=float(proposal.score), head=int(proposal.head))
                for proposal in answer.showing.proposals
            ),
            shown=answer.showing.index,
            model_version=answer.model_version,
        )
        try:
            self._store.keep_answer(stored)
        except StoreError as error:
            _LOG.error("The answer %s is not kept. %s", answer.region_id, error)
