"""What accepted masks cost: the user study of the paper (Section 5.3), made by daily work.

A row is written for each accepted mask that this backend made, when its annotation arrives, so that
the page counts small rows and reads no masks. It goes when the annotation is deleted or skipped, or
when the mask is taken out of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import case, delete, func, literal, select
from sqlalchemy.orm import Session, aliased

from lidiv_backend.learning.schema import AcceptedMaskRow, AnnotationRow, InteractionRow, now

if TYPE_CHECKING:
    from lidiv_backend.learning.store import Store

#: Longer ones are breaks; they count as this.
MAX_SECONDS = 3600
_BRUSH_TYPES = ("brush", "brushlabels")
_ID_LENGTH = 64


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Where the values of a sample lie.

    Parameters
    ----------
    low, median, high
        Quartiles: the smallest value that at least 25, 50 and 75 % do not exceed.
    mean
        The mean.
    """

    low: int
    median: int
    high: int
    mean: float


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a group of accepted masks cost.

    Parameters
    ----------
    masks
        How many.
    clicks
        All clicks of each, those that asked for the next proposal among them.
    stepped
        Masks for which the annotator looked at another proposal than the first.
    seconds
        From the first click until the annotation was saved; None where that is not known.
    first_day, last_day
        When they were made, in UTC.
    """

    masks: int
    clicks: Spread
    stepped: int
    seconds: Spread | None
    first_day: date
    last_day: date


def note_accepted(session: Session, row: AnnotationRow, *, live: bool) -> None:
    """Bring the rows of an annotation's masks up to date.

    Parameters
    ----------
    session
        An open transaction.
    row
        The annotation as it is now; flushed here.
    live
        Whether it arrives as it is saved; otherwise nobody knows how long it took.
    """
    session.flush()
    counts = row.deleted_at is None and not row.was_cancelled
    wanted = _region_ids(row.result) if counts else []
    mine = (
        AcceptedMaskRow.project == row.project,
        AcceptedMaskRow.annotation == row.annotation,
    )
    known = set(session.scalars(select(AcceptedMaskRow.region_id).where(*mine)))
    gone = known - set(wanted)
    if gone:
        session.execute(delete(AcceptedMaskRow).where(*mine, AcceptedMaskRow.region_id.in_(gone)))
    new = [region for region in wanted if region not in known]
    if not new:
        return
    first = aliased(InteractionRow)
    began = (
        select(func.min(first.created_at))
        .where(
            first.project == InteractionRow.project,
            first.task == InteractionRow.task,
            first.first_click == InteractionRow.first_click,
            first.interactive,
        )
        .correlate(InteractionRow)
        .scalar_subquery()
    )
    answers = session.execute(
        select(
            InteractionRow.region_id,
            InteractionRow.clicks,
            InteractionRow.model_version,
            InteractionRow.created_at,
            began,
        ).where(
            InteractionRow.region_id.in_(new),
            InteractionRow.project == row.project,
            InteractionRow.interactive,
        )
    )
    for region, clicks, version, shown_at, began_at in answers:
        taken = now() - (began_at or shown_at)
        session.add(
            AcceptedMaskRow(
                project=row.project,
                annotation=row.annotation,
                region_id=region,
                model_version=version,
                clicks=len(clicks),
                steps=sum(1 for click in clicks if click.get("next")),
                seconds=_whole_seconds(taken) if live else None,
                day=shown_at.date(),
            )
        )


def forget_accepted(session: Session, project: str, numbers: Sequence[int]) -> None:
    """Drop the rows of annotations that were deleted."""
    session.execute(
        delete(AcceptedMaskRow).where(
            AcceptedMaskRow.project == project, AcceptedMaskRow.annotation.in_(numbers)
        )
    )


def cost_of_all(store: Store, *, since: date, project: str | None = None) -> Cost | None:
    """Count what accepted masks cost altogether; None if there are none. See `cost_by_day`."""
    return _costs(store, literal(0), since, project).get(0)


def cost_by_day(store: Store, *, since: date, project: str | None = None) -> dict[date, Cost]:
    """Count what accepted masks cost, for each day on which there were any.

    Parameters
    ----------
    store
        The database.
    since
        First day, in UTC.
    project
        Whose masks; None for all.

    Returns
    -------
    dict
        In the order of the days.
    """
    return dict(sorted(_costs(store, AcceptedMaskRow.day, since, project).items()))


def cost_by_version(store: Store, *, since: date, project: str | None = None) -> dict[str, Cost]:
    """Count what accepted masks cost with each version of the model; see `cost_by_day`."""
    return _costs(store, AcceptedMaskRow.model_version, since, project)


def _costs(store: Store, key: Any, since: date, project: str | None) -> dict[Any, Cost]:
    """Histograms are made by the database, so that what is read does not grow with the masks."""
    wanted = [AcceptedMaskRow.day >= since]
    if project is not None:
        wanted.append(AcceptedMaskRow.project == project)
    clicks: dict[Any, dict[int, int]] = defaultdict(dict)
    seconds: dict[Any, dict[int, int]] = defaultdict(dict)
    stepped: dict[Any, int] = defaultdict(int)
    days: dict[Any, list[date]] = defaultdict(list)
    with store.reading() as session:
        for group, value, count, steps, first, last in session.execute(
            select(
                key,
                AcceptedMaskRow.clicks,
                func.count(),
                func.sum(case((AcceptedMaskRow.steps > 0, 1), else_=0)),
                func.min(AcceptedMaskRow.day),
                func.max(AcceptedMaskRow.day),
            )
            .where(*wanted)
            .group_by(key, AcceptedMaskRow.clicks)
        ):
            clicks[group][value] = count
            stepped[group] += int(steps)
            days[group] += [first, last]
        for group, value, count in session.execute(
            select(key, AcceptedMaskRow.seconds, func.count())
            .where(*wanted, AcceptedMaskRow.seconds.is_not(None))
            .group_by(key, AcceptedMaskRow.seconds)
        ):
            seconds[group][value] = count
    return {
        group: Cost(
            masks=sum(histogram.values()),
            clicks=spread_of(histogram),
            stepped=stepped[group],
            seconds=spread_of(seconds[group]) if group in seconds else None,
            first_day=min(days[group]),
            last_day=max(days[group]),
        )
        for group, histogram in clicks.items()
    }


def spread_of(histogram: Mapping[int, int]) -> Spread:
    """Summarise a sample.

    Parameters
    ----------
    histogram
        Value -> how often; not empty.
    """
    total = sum(histogram.values())

    def quantile(quarters: int) -> int:
        seen = 0
        for value, count in sorted(histogram.items()):
            seen += count
            if 4 * seen >= quarters * total:
                return value
        raise ValueError("There are no values.")

    return Spread(
        low=quantile(1),
        median=quantile(2),
        high=quantile(3),
        mean=sum(value * count for value, count in histogram.items()) / total,
    )


def _region_ids(result: Iterable[object]) -> list[str]:
    """Ids of an annotation's brush regions, each once; odd entries are left out."""
    found: dict[str, None] = {}
    for item in result if isinstance(result, list) else ():
        if not isinstance(item, Mapping) or item.get("type") not in _BRUSH_TYPES:
            continue
        region = item.get("id")
        # Ours are short; a NUL is more than PostgreSQL can even compare with.
        if isinstance(region, str) and 0 < len(region) <= _ID_LENGTH and "\0" not in region:
            found[region] = None
    return list(found)


def _whole_seconds(taken: timedelta) -> int:
    return min(max(round(taken.total_seconds()), 0), MAX_SECONDS)


def days_ago(days: int) -> date:
    """Give the day so many days before today, in UTC."""
    return (now() - timedelta(days=days)).date()
