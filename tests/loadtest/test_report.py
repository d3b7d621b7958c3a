from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from lidiv_backend.loadtest.report import (
    Event,
    Memory,
    bearable,
    draw,
    latency_table,
    lost,
    memory_table,
    percentile,
    read_events,
    steps,
    steps_table,
)


def event(
    at: float, ms: float, kind: str = "click", *, ok: bool = True, attempt: int = 1, n: int = 8
) -> Event:
    return Event(
        kind=kind,
        at=at,
        ms=ms,
        status=200 if ok else 503,
        ok=ok,
        attempt=attempt,
        annotators=n,
        region="r" if ok else "",
    )


def row(table: str, name: str) -> list[str]:
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_first_masks_are_told_apart_and_failures_do_not_make_it_faster() -> None:
    clicks = [event(at, ms) for at, ms in enumerate(range(10, 1010, 10))]
    events = [*clicks, event(5, 1, ok=False), event(1, 2000, "first"), event(60, 5, "submit")]
    table = latency_table(events)
    assert row(table, "further clicks") == ["further clicks", "100", "1", "505", "950", "1000"]
    assert row(table, "first mask of an image")[1:] == ["1", "0", "2000", "2000", "2000"]
    assert row(table, "submits")[1:] == ["1", "0", "5", "5", "5"]
    assert percentile(clicks, 0.95) == pytest.approx(950.5)
    assert row(latency_table(clicks), "submits")[1:] == ["0", "0", "-", "-", "-"]


def test_lost_is_what_no_second_click_made_good() -> None:
    made_good = [event(1, 9, ok=False), event(2, 9, attempt=2)]
    given_up = [event(3 + n, 9, ok=False, attempt=n) for n in (1, 2, 3)]
    unheard = event(9, 9, "submit", ok=False)
    assert lost([*made_good, *given_up, unheard], attempts=3) == [given_up[-1], unheard]


def test_memory_is_judged_after_the_first_minute() -> None:
    samples = [Memory(at=at, megabytes={"server": 5000.0}) for at in range(60)]
    samples += [Memory(at=60 + at, megabytes={"server": 900.0 + at}) for at in range(100)]
    table = memory_table(samples)
    assert row(table, "server") == ["server", "904", "994", "999"]
    assert memory_table(samples[:30]) == ""


def ramp() -> list[Event]:
    """8, 16 and 24 annotators for 40 s each; the last ones wait too long."""
    found = []
    for number, ms in enumerate((100, 900, 1800)):
        begin = 40 * number
        # Newcomers' first seconds are slow, and do not count.
        found += [event(begin + at, 9000, n=8 * (number + 1)) for at in range(10)]
        found += [event(begin + 10 + at, ms, n=8 * (number + 1)) for at in range(30)]
    return found


def test_a_ramp_ends_where_clicks_take_too_long() -> None:
    assert [
        (annotators, len(these)) for annotators, these, _ in steps(ramp(), step_seconds=40)
    ] == [
        (8, 30),
        (16, 30),
        (24, 29),
    ]
    assert bearable(ramp(), step_seconds=40, limit_ms=1500) == (16, 24)
    assert bearable(ramp()[:80], step_seconds=40, limit_ms=1500) == (16, None)
    # One click that fails is one too many, however quick the others are.
    failed = [*ramp(), event(60, 3, ok=False, n=16)]
    assert bearable(failed, step_seconds=40, limit_ms=1500) == (8, 16)
    table = steps_table(ramp(), step_seconds=40)
    assert row(table, "16") == ["16", "60", "-", "-", "900", "900", "0"]


def test_requests_are_read_with_the_runs_own_time(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    lines = [json.dumps(vars(event(at, 5)) | {"at": 1000 + at}) for at in (7.0, 3.0)]
    path.write_text("\n".join(lines) + '\n{"kind": "cl')
    assert [each.at for each in read_events(path, began=1000)] == [3.0, 7.0]


def test_the_picture_is_one(tmp_path: Path) -> None:
    events = [*ramp(), event(3, 2000, "first"), event(4, 0, ok=False)]
    samples = [Memory(at=at, megabytes={"server": 900.0 + at}) for at in range(120)]
    path = tmp_path / "pictures" / "load.png"
    draw(path, events, samples, title="8", marks=[(30.0, "killed")], limit_ms=1500)
    with Image.open(path) as image:
        assert image.width > 600
