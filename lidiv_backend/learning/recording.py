"""What the server answers, written down for learning without ever getting in its way."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Select, delete, select
from sqlalchemy.orm import Session

from lidiv_backend.labelstudio.beginnings import (
    BEGUN_SECONDS,
    BOX_SECONDS,
    Begun,
    InteractionKey,
)
from lidiv_backend.labelstudio.config import Target
from lidiv_backend.labelstudio.results import PlacedBox, PlacedClick, Prompt
from lidiv_backend.labelstudio.service import Answer
from lidiv_backend.learning.schema import BeginningRow, InteractionRow, WaitingBoxesRow, now
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


class BeginningLog:
    """Keeps rectangles and beginnings; a `lidiv_backend.labelstudio.beginnings.Keeper`.

    An annotator gets a mask also when the database is full or gone: that is logged.

    Parameters
    ----------
    store
        The database.
    clock
        Gives the time; for tests.
    """

    def __init__(self, store: Store, *, clock: Callable[[], datetime] = now) -> None:
        self._store = store
        self._clock = clock

    def keep_boxes(self, project: str, task: int | None, boxes: tuple[Prompt, ...]) -> None:
        """Keep the rectangles of an annotator, instead of those that this one had before."""
        ids = {box.id for box in boxes}

        def write(session: Session) -> None:
            session.execute(
                delete(WaitingBoxesRow).where(WaitingBoxesRow.placed_at < self._oldest_box())
            )
            rows = session.scalars(_at(project, task)).all()
            for row in rows:
                is_the_same = bool(ids & {_box(content).id for content in row.boxes})
                if is_the_same or (not ids and len(rows) == 1):
                    session.delete(row)
            if boxes:
                contents = [asdict(box) for box in boxes]
                session.add(
                    WaitingBoxesRow(
                        project=project, task=task, boxes=contents, placed_at=self._clock()
                    )
                )

        try:
            self._store.write(write)
        except StoreError as error:
            _LOG.error("Rectangles are not kept. %s", error)

    def waiting_boxes(
        self, project: str, task: int | None, *, accepted: frozenset[str] = frozenset()
    ) -> tuple[tuple[Prompt, ...], ...]:
        """Give the rectangles of a task that are not forgotten yet, each annotator's apart.

        Those that were answered with a region in `accepted` wait no longer.
        """
        wanted = _at(project, task).where(WaitingBoxesRow.placed_at >= self._oldest_box())
        try:
            with self._store.reading() as session:
                # The latest first, for rectangles of the same size.
                rows = session.scalars(wanted.order_by(WaitingBoxesRow.id.desc())).all()
                groups = [tuple(_box(content) for content in row.boxes) for row in rows]
                if groups and accepted:
                    done = _accepted_boxes(session, project, task, accepted)
                    groups = [tuple(box for box in group if not done(box)) for group in groups]
                return tuple(group for group in groups if group)
        except StoreError as error:
            _LOG.error("Rectangles cannot be looked up. %s", error)
            return ()

    def keep_begun(self, key: InteractionKey, begun: Begun) -> Begun:
        """Keep a beginning, and give the one that counts: somebody else's, who came before."""

        def write(session: Session) -> Begun:
            oldest = self._clock() - timedelta(seconds=BEGUN_SECONDS)
            session.execute(delete(BeginningRow).where(BeginningRow.begun_at < oldest))
            row = session.get(BeginningRow, _digest(key))
            if row is not None:
                return _begun(row.content)
            session.add(
                BeginningRow(key=_digest(key), content=asdict(begun), begun_at=self._clock())
            )
            return begun

        try:
            return self._store.write(write)
        except StoreError as error:
            _LOG.error("What an interaction begins with is not kept. %s", error)
            return begun

    def begun(self, key: InteractionKey) -> Begun | None:
        """Give what an interaction began with; None if it is new."""
        try:
            with self._store.reading() as session:
                row = session.get(BeginningRow, _digest(key))
                return None if row is None else _begun(row.content)
        except StoreError as error:
            _LOG.error("What an interaction began with cannot be looked up. %s", error)
            return None

    def _oldest_box(self) -> datetime:
        return self._clock() - timedelta(seconds=BOX_SECONDS)


def _at(project: str, task: int | None) -> Select[WaitingBoxesRow]:
    return select(WaitingBoxesRow).where(
        WaitingBoxesRow.project == project, WaitingBoxesRow.task == task
    )


def _accepted_boxes(
    session: Session, project: str, task: int | None, accepted: frozenset[str]
) -> Callable[[Prompt], bool]:
    """Give a test of whether a rectangle was answered with one of the accepted regions."""
    answers = session.execute(
        select(InteractionRow.region_id, InteractionRow.first_click, InteractionRow.clicks)
        .where(InteractionRow.project == project, InteractionRow.task == task)
        .order_by(InteractionRow.created_at)
    ).all()
    found = [answer for answer in answers if answer.region_id in accepted]
    # A rectangle that was moved since is answered for other clicks.
    latest = {answer.first_click: answer.clicks for answer in answers}
    ids = {answer.first_click for answer in found if answer.clicks == latest[answer.first_click]}
    # Clicks that refine a rectangle's mask make answers of their own.
    keys = {
        _digest(InteractionKey(project=project, task=task, first_click=answer.first_click))
        for answer in found
    }
    begun = session.scalars(select(BeginningRow.content).where(BeginningRow.key.in_(keys)))
    refined = {_begun(content).box for content in begun}
    return lambda box: box.id in ids or box in refined


def _digest(key: InteractionKey) -> str:
    content = repr((key.project, key.task, key.first_click))
    return hashlib.sha256(content.encode()).hexdigest()


def _begun(content: dict[str, Any]) -> Begun:
    return Begun(
        box=None if content["box"] is None else _box(content["box"]),
        others=tuple(_box(other) for other in content["others"]),
        region=content["region"],
    )


def _box(content: dict[str, Any]) -> Prompt:
    """Read a rectangle as `dataclasses.asdict` wrote it."""
    return Prompt(
        target=Target(**content["target"]),
        clicks=(),
        size=None if content["size"] is None else tuple(content["size"]),
        box=PlacedBox(**content["box"]),
    )
