from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alembic import command
from alembic.config import Config
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import create_engine, text, update
from sqlalchemy.orm import Session

from lidiv_backend.learning import usage
from lidiv_backend.learning.schema import InteractionRow
from lidiv_backend.learning.store import (
    Store,
    StoredAnnotation,
    StoredAnswer,
    StoredClick,
    StoredProposal,
)
from tests.learning.postgres import postgres_server

PROJECT = "7.1795328789"
EVER = date(2000, 1, 1)


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if getattr(request, "param", "sqlite") == "postgresql":
        with postgres_server() as url:
            opened = Store(url)
            yield opened
            opened.close()
        return
    opened = Store(f"sqlite:///{tmp_path / 'lidiv.sqlite'}")
    yield opened
    opened.close()


def answer(
    store: Store,
    region_id: str,
    clicks: str,
    *,
    version: str = "v1",
    first_click: str | None = None,
    interactive: bool = True,
    project: str = PROJECT,
    at: datetime | None = None,
) -> None:
    """Keep an answer; ``"+-n"`` is a positive click, a negative one, and one for the next."""
    store.keep_answer(
        StoredAnswer(
            region_id=region_id,
            project=project,
            task=3,
            first_click=first_click or f"first of {region_id}",
            interactive=interactive,
            to_name="image",
            label=None,
            height=4,
            width=4,
            clicks=tuple(
                StoredClick(id=f"{number}", x=1, y=1, positive=sign != "-", next=sign == "n")
                for number, sign in enumerate(clicks)
            ),
            proposals=(StoredProposal(score=0.5, head=0),),
            shown=0,
            model_version=version,
        )
    )
    if at is not None:

        def move(session: Session) -> None:
            session.execute(
                update(InteractionRow)
                .where(InteractionRow.region_id == region_id)
                .values(created_at=at)
            )

        store.write(move)


def annotation(number: int, regions: Sequence[Any], **changes: Any) -> StoredAnnotation:
    values: dict[str, Any] = {
        "project": PROJECT,
        "annotation": number,
        "task": 3,
        "task_data": {},
        "result": [
            {"id": region, "type": "brush", "value": {"rle": [1]}}
            if isinstance(region, str)
            else region
            for region in regions
        ],
        "was_cancelled": False,
        "completed_by": 1,
        "lead_time": 2.0,
    }
    return StoredAnnotation(**(values | changes))


def arrives(store: Store, number: int, regions: Sequence[Any], **changes: Any) -> None:
    made = annotation(number, regions, **changes)
    store.keep_event(action="ANNOTATION_CREATED", project=made.project, payload={}, annotation=made)


@pytest.mark.parametrize("store", ["sqlite", "postgresql"], indirect=True)
def test_costs_counted_by_hand(store: Store) -> None:
    monday, tuesday = datetime(2026, 3, 2, 12, tzinfo=UTC), datetime(2026, 3, 3, 12, tzinfo=UTC)
    answer(store, "a", "+", at=monday)
    answer(store, "b", "++-", at=monday)
    answer(store, "c", "+n", at=monday)
    answer(store, "d", "+nn+", at=tuesday, version="v2")
    answer(store, "never accepted", "+++++++", at=tuesday)
    arrives(store, 1, ["a", "b"])
    arrives(store, 2, ["c"])
    arrives(store, 3, ["d", "drawn by hand"])
    days = usage.cost_by_day(store, since=EVER)
    assert list(days) == [monday.date(), tuesday.date()]
    first = days[monday.date()]
    assert (first.masks, first.stepped) == (3, 1)
    assert first.clicks == usage.Spread(low=1, median=2, high=3, mean=2.0)
    versions = usage.cost_by_version(store, since=EVER)
    assert {name: (cost.masks, cost.stepped) for name, cost in versions.items()} == {
        "v1": (3, 1),
        "v2": (1, 1),
    }
    assert versions["v2"].clicks.mean == 4.0
    assert (versions["v1"].first_day, versions["v1"].last_day) == (monday.date(), monday.date())
    everything = usage.cost_of_all(store, since=EVER)
    assert everything is not None
    assert (everything.masks, everything.clicks.mean) == (4, 2.5)
    assert (everything.first_day, everything.last_day) == (monday.date(), tuesday.date())
    assert usage.cost_of_all(store, since=date(2027, 1, 1)) is None
    assert list(usage.cost_by_day(store, since=tuesday.date())) == [tuesday.date()]
    assert usage.cost_by_day(store, since=EVER, project="another") == {}


def test_it_follows_what_annotators_change_their_minds_about(store: Store) -> None:
    def masks() -> int:
        return sum(cost.masks for cost in usage.cost_by_version(store, since=EVER).values())

    for region in "abc":
        answer(store, region, "+")
    arrives(store, 1, ["a", "b"])
    arrives(store, 1, ["a", "b"])
    assert masks() == 2
    arrives(store, 1, ["b", "c"])
    assert masks() == 2
    arrives(store, 1, ["b", "c"], was_cancelled=True)
    assert masks() == 0
    arrives(store, 1, ["a", "b", "c"])
    assert masks() == 3
    store.keep_event(action="ANNOTATIONS_DELETED", project=PROJECT, payload={}, deleted=[1])
    assert masks() == 0
    # A late event brings nothing back; Label Studio's own word does.
    arrives(store, 1, ["a"])
    assert masks() == 0
    store.keep_annotations(PROJECT, [annotation(1, ["a"])], deleted=[])
    assert masks() == 1
    store.keep_annotations(PROJECT, [], deleted=[1])
    assert masks() == 0


def test_what_does_not_count(store: Store) -> None:
    answer(store, "batch", "+", interactive=False)
    answer(store, "other", "+", project="8.1")
    answer(store, "r", "+")
    odd = [
        None,
        5,
        {"type": "brush"},
        {"type": "brush", "id": 5},
        {"type": "brush", "id": "x" * 99},
    ]
    odd += [{"type": "brush", "id": "nul\0"}, {"type": "rectangle", "id": "r"}]
    arrives(store, 1, ["batch", "other", *odd])
    assert usage.cost_by_day(store, since=EVER) == {}
    # Label Studio saves some masks as several results with one id.
    arrives(store, 2, ["r", {"type": "labels", "id": "r"}, {"type": "brush", "id": "r"}])
    (cost,) = usage.cost_by_day(store, since=EVER).values()
    assert cost.masks == 1


def test_time_runs_from_the_first_click_until_it_is_saved(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = datetime(2026, 3, 2, 12, tzinfo=UTC)
    answer(store, "a1", "+", first_click="a", at=began)
    answer(store, "a2", "++", first_click="a", at=began + timedelta(seconds=8))
    answer(store, "b", "+", at=began + timedelta(seconds=20))
    answer(store, "c", "+", at=began - timedelta(days=3))
    monkeypatch.setattr(usage, "now", lambda: began + timedelta(seconds=30))
    arrives(store, 1, ["a2", "b"])
    (cost,) = usage.cost_by_day(store, since=EVER).values()
    assert cost.seconds == usage.Spread(low=10, median=10, high=30, mean=20.0)
    # When it was saved is not known of what the webhook did not tell.
    store.keep_annotations(PROJECT, [annotation(2, ["c"])], deleted=[])
    assert usage.cost_by_day(store, since=EVER)[date(2026, 2, 27)].seconds is None
    # Somebody went home.
    answer(store, "d", "+", version="v9", at=began - timedelta(days=3))
    arrives(store, 3, ["d"])
    late = usage.cost_by_version(store, since=EVER)["v9"].seconds
    assert late is not None
    assert late.median == usage.MAX_SECONDS


@given(st.lists(st.integers(1, 20), min_size=1))
def test_spreads_are_those_of_the_sample(sample: list[int]) -> None:
    spread = usage.spread_of({value: sample.count(value) for value in sample})
    quartiles = np.quantile(sample, [0.25, 0.5, 0.75], method="inverted_cdf")
    assert [spread.low, spread.median, spread.high] == list(quartiles)
    assert spread.mean == pytest.approx(statistics.fmean(sample))


def test_what_was_accepted_before_the_table_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "lidiv.sqlite"
    store = Store(f"sqlite:///{path}")
    answer(store, "a", "+n", at=datetime(2026, 3, 2, 12, tzinfo=UTC))
    answer(store, "b", "+")
    arrives(store, 1, ["a", None, {"type": "brush", "id": []}])
    arrives(store, 2, ["b"], was_cancelled=True)
    before = usage.cost_by_day(store, since=EVER)
    store.close()
    engine = create_engine(f"sqlite:///{path}")
    config = Config()
    config.set_main_option("script_location", "lidiv_backend.learning:migrations")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0002")
        assert connection.scalar(text("SELECT COUNT(*) FROM annotations")) == 2
    engine.dispose()
    store = Store(f"sqlite:///{path}")
    (day, cost), *rest = usage.cost_by_day(store, since=EVER).items()
    store.close()
    assert not rest
    assert (day, cost.clicks, cost.stepped) == (
        date(2026, 3, 2),
        before[day].clicks,
        before[day].stepped,
    )
    assert cost.seconds is None


def test_accepted_annotations_are_counted_without_reading_their_masks(tmp_path: Path) -> None:
    path = tmp_path / "lidiv.sqlite"
    Store(f"sqlite:///{path}").close()
    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        plan = connection.execute(
            text(
                "EXPLAIN QUERY PLAN SELECT COUNT(*) FROM annotations WHERE deleted_at IS NULL "
                "AND was_cancelled IS 0 AND created_at > '2026'"
            )
        ).all()
    engine.dispose()
    assert "USING COVERING INDEX ix_annotations_accepted" in str(plan)
