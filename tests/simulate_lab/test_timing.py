from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from lidiv_backend.clicks import Click
from lidiv_backend.simulate_lab.timing import ClickTimer, Timing, webhooks_in_time


def test_clicks_are_different_lie_in_the_image_and_the_first_does_not_count() -> None:
    made: list[Click] = []

    def click(made_now: Click) -> float:
        made.append(made_now)
        return float(len(made))

    times = ClickTimer(click=click, height=20, width=50, count=6, thought=0).run()
    assert list(times) == [2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    assert len(set(made)) == 7
    assert all(0 <= each.x < 50 and 0 <= each.y < 20 and each.positive for each in made)


def test_without_a_count_nothing_is_clicked() -> None:
    def click(_: Click) -> float:
        raise AssertionError

    assert ClickTimer(click=click, height=9, width=9, count=0).run() == ()


def test_the_rise_is_that_of_the_medians() -> None:
    timing = Timing(before=(0.1, 0.1, 9.0), training=(0.125, 0.125, 0.0))
    assert timing.rise == pytest.approx(0.25)
    assert Timing(before=(0.1,)).rise is None


def test_webhooks_are_read_from_the_metrics() -> None:
    registry = CollectorRegistry()
    seconds = Histogram(
        "lidiv_request_seconds", "x", ["route"], buckets=(0.05, 0.1, 1), registry=registry
    )
    for value in (0.01, 0.06, 0.09, 0.2, 3):
        seconds.labels("/webhook").observe(value)
    seconds.labels("/predict").observe(0.01)
    assert webhooks_in_time(generate_latest(registry).decode()) == (5, 3)
    assert webhooks_in_time("") == (0, 0)
