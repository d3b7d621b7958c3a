import dataclasses
import math

import numpy as np
import pytest

from lidiv_backend.clicks import Click
from lidiv_backend.evaluation.measures import (
    bootstrap_mean,
    calibrate,
    clicks_to,
    error_after,
    iou_after,
    number_of_actions,
    number_of_clicks,
    paired_difference,
    summarise,
    table_of,
)
from lidiv_backend.evaluation.protocols import Action, Step, Trace
from lidiv_backend.evaluation.results import Result, RunKey


def trace(*ious: float, first: int = 1, oracle: float = 0.0, actions=(), seconds=0.1) -> Trace:
    steps = tuple(
        Step(clicks=k, iou=iou, oracle=max(iou, oracle), seconds=seconds, proposals=2)
        for k, iou in enumerate(ious, start=first)
    )
    clicks = tuple(Click(x=0, y=k) for k in range(steps[-1].clicks))
    return Trace(
        clicks=clicks,
        steps=steps,
        embed_seconds=1.0,
        actions=tuple(
            Action(actions=k, iou=iou, stepped=False) for k, iou in enumerate(actions, start=1)
        ),
    )


def result(run: Trace, *, name: str = "a", seed: int = 0, method: str = "m") -> Result:
    key = RunKey(
        method=method, data_set="set", protocol="centre", image=name, object=name, seed=seed
    )
    return Result(
        key=key, settings="s", version="1", index=0, height=10, width=10, area=5, trace=run
    )


def test_clicks_to_a_target_count_the_first_time_it_was_reached() -> None:
    run = trace(0.5, 0.86, 0.80, 0.91)
    assert clicks_to(run, 0.85) == number_of_clicks(run, 0.85) == 2
    assert number_of_clicks(run, 0.90) == 4
    assert clicks_to(run, 0.95) is None
    assert number_of_clicks(run, 0.95) == 20
    # A system that needs two clicks for its first result needs at least two.
    assert number_of_clicks(trace(0.99, first=2), 0.85) == 2


def test_actions_to_a_target() -> None:
    run = trace(0.5, 0.9, actions=(0.5, 0.88))
    assert number_of_actions(run, 0.85) == 2
    assert number_of_actions(run, 0.90) == 20


def test_curves_are_empty_before_the_first_result_and_hold_the_last() -> None:
    run = trace(0.5, 0.7, first=2, oracle=0.6)
    assert math.isnan(iou_after(run, 1))
    assert [iou_after(run, k) for k in (2, 3, 20)] == [0.5, 0.7, 0.7]
    assert [iou_after(run, k, oracle=True) for k in (2, 3)] == [0.6, 0.7]
    assert error_after(run, 2) == 0.5


def test_table_by_object_and_seed_with_gaps() -> None:
    results = [
        result(trace(0.9), name="b", seed=1),
        result(trace(0.1, 0.9), name="a", seed=0),
        result(trace(0.1, 0.2, 0.9), name="a", seed=1),
    ]
    table = table_of(results, lambda run: len(run.steps))
    np.testing.assert_array_equal(table, [[2, 3], [np.nan, 1]])


def test_bootstrap_mean_and_interval() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(5.0, 2.0, size=400)
    interval = bootstrap_mean(values)
    assert interval.mean == pytest.approx(values.mean())
    # The normal approximation is right for so many values.
    half = 1.96 * values.std() / 20
    assert interval.low == pytest.approx(values.mean() - half, abs=0.05)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.05)
    assert bootstrap_mean(values) == interval
    assert bootstrap_mean(values, seed=1) != interval


def test_bootstrap_takes_seeds_into_account_and_leaves_out_gaps() -> None:
    # Objects are alike, seeds are not: all the uncertainty is in the seeds.
    values = np.tile([1.0, 2.0, 3.0], (50, 1))
    interval = bootstrap_mean(values)
    assert interval.mean == 2.0
    assert interval.low <= 1.34
    assert interval.high >= 2.66
    gaps = np.array([[1.0, np.nan], [3.0, 5.0]])
    assert bootstrap_mean(gaps).mean == pytest.approx((1.0 + 4.0) / 2)
    point = bootstrap_mean(np.array([[4.0]]))
    assert (point.mean, point.low, point.high) == (4.0, 4.0, 4.0)
    assert math.isnan(bootstrap_mean(np.full((2, 2), np.nan)).mean)
    assert math.isnan(bootstrap_mean(np.zeros((0, 0))).mean)


def test_paired_difference_uses_shared_runs_only() -> None:
    names = [f"{k:02d}" for k in range(30)]
    rng = np.random.default_rng(0)
    hard = {name: int(rng.integers(2, 15)) for name in names}
    candidate = [
        result(trace(*[0.1] * (hard[n] - 1), 0.9), name=n, method="new") for n in reversed(names)
    ]
    reference = [result(trace(*[0.1] * hard[n], 0.9), name=n, method="old") for n in names]
    reference.append(result(trace(0.9), name="only here", method="old"))
    interval = paired_difference(candidate, reference, lambda run: number_of_clicks(run, 0.85))
    # Object by object the candidate needs one click less, however much objects differ.
    assert (interval.mean, interval.low, interval.high) == (-1.0, -1.0, -1.0)
    assert math.isnan(paired_difference([], reference, lambda run: 0.0).mean)


def test_summary() -> None:
    results = [
        result(trace(0.5, 0.9, 0.88, 0.96, oracle=0.9, actions=(0.5, 0.96)), name="a"),
        result(trace(0.2, 0.4, oracle=0.5, actions=(0.2, 0.4)), name="b"),
    ]
    summary = summarise(results)
    assert (summary.objects, summary.seeds) == (2, 1)
    at = summary.at(0.85)
    assert at.clicks.mean == (2 + 20) / 2
    assert at.failures == 0.5
    assert at.actions is not None
    assert at.actions.mean == (2 + 20) / 2
    assert summary.at(0.95).clicks.mean == (4 + 20) / 2
    assert summary.iou[0] == pytest.approx(0.35)
    assert summary.iou[-1] == pytest.approx((0.96 + 0.4) / 2)
    assert summary.oracle[0] == pytest.approx((0.9 + 0.5) / 2)
    assert summary.error[1].mean == pytest.approx(1 - (0.9 + 0.4) / 2)
    # Regrets: 0.4, 0, 0.02, 0 and 0.3, 0.1.
    assert summary.regret == pytest.approx(0.82 / 6)
    # Of four further clicks one made it worse.
    assert summary.worse == 0.25
    assert summary.click_seconds.median == pytest.approx(0.1)
    assert summary.first_mask_seconds.p95 == pytest.approx(1.1)
    assert summary.first_oracle.mean == pytest.approx(0.7)
    assert summarise([result(trace(0.5))]).at(0.85).actions is None


def test_what_annotators_did_not_ask_for_is_not_said_to_have_failed() -> None:
    run = dataclasses.replace(trace(0.5, 0.91, actions=(0.5, 0.91)), stop_at=0.9)
    summary = summarise([result(run)])
    assert summary.at(0.9).clicks.mean == 2
    assert summary.at(0.9).failures == 0
    beyond = summary.at(0.95)
    assert math.isnan(beyond.clicks.mean)
    assert math.isnan(beyond.failures)
    assert beyond.actions is None


def test_calibration_by_hand() -> None:
    # Bin 0.8 to 0.9: expected 0.82 and 0.88, real 0.7 and 0.9; bin 0.2 to 0.3; the last holds 1.
    found = calibrate([(0.82, 0.7), (0.88, 0.9), (0.25, 0.25), (1.0, 0.6)])
    assert found is not None
    assert [entry.count for entry in found.bins] == [1, 2, 1]
    assert [entry.expected for entry in found.bins] == pytest.approx([0.25, 0.85, 1.0])
    assert [entry.real for entry in found.bins] == pytest.approx([0.25, 0.8, 0.6])
    assert found.error == pytest.approx((2 * 0.05 + 0 + 0.4) / 4)


def test_no_calibration_without_expectations() -> None:
    assert calibrate([]) is None
    assert summarise([result(trace(0.5, 0.9))]).calibration is None
