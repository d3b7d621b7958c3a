"""How many there are, for metrics: counted by the database, which returns a few small rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import func, select

from lidiv_backend.learning.schema import AcceptedMaskRow, TrainingRunRow

if TYPE_CHECKING:
    from lidiv_backend.learning.store import Store


@dataclass(frozen=True, kw_only=True)
class AcceptedClicks:
    """What accepted masks cost, counted.

    Parameters
    ----------
    masks
        Number of clicks -> how many masks needed so many.
    steps
        Clicks among them that asked for the next proposal.
    """

    masks: dict[int, int]
    steps: int


def accepted_clicks(store: Store) -> AcceptedClicks:
    """Count the clicks of all accepted masks.

    Raises
    ------
    StoreError
        If the database cannot be used.
    """
    clicks = AcceptedMaskRow.clicks
    with store.reading() as session:
        rows = session.execute(
            select(clicks, func.count(), func.sum(AcceptedMaskRow.steps)).group_by(clicks)
        ).all()
    return AcceptedClicks(
        masks={number: count for number, count, _ in rows},
        steps=sum(int(steps) for _, _, steps in rows),
    )


def runs_by_state(store: Store) -> dict[str, int]:
    """Count the training runs in each state.

    Raises
    ------
    StoreError
        If the database cannot be used.
    """
    state = TrainingRunRow.state
    with store.reading() as session:
        rows = session.execute(select(state, func.count()).group_by(state)).all()
    return {str(name): count for name, count in rows}
