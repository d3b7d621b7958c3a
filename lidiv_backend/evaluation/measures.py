"""From traces to numbers: clicks to a target, curves, regret, times, and their intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from lidiv_backend.evaluation.protocols import MAX_CLICKS, Trace
from lidiv_backend.evaluation.results import Result

#: IoU at which clicks are counted.
TARGETS = (0.85, 0.90, 0.95)
#: A further click made the mask worse if the IoU fell by more than this.
WORSE_BY = 0.001

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean and where it would fall in 95 of 100 repetitions.

    Parameters
    ----------
    mean, low, high
        In the measure's own unit; NaN where nothing was measured.
    """

    mean: float
    low: float
    high: float


_UNKNOWN = Interval(mean=math.nan, low=math.nan, high=math.nan)


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetSummary:
    """What it took to reach one IoU.

    Parameters
    ----------
    iou
        The target.
    clicks
        Clicks needed, a target that was never reached counted as 20; NaN where annotators were
        content with less.
    failures
        Share of runs that never reached it, in [0, 1]; NaN likewise.
    actions
        Clicks and steps between proposals needed, counted the same; None if not measured.
    """

    iou: float
    clicks: Interval
    failures: float
    actions: Interval | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """Wall-clock times.

    Parameters
    ----------
    median, p95
        Median and 95th percentile, seconds.
    """

    median: float
    p95: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """Masks of which about the same IoU was expected.

    Parameters
    ----------
    count
        How many.
    expected, real
        Means of the IoU that was expected and of the one that they had.
    """

    count: int
    expected: float
    real: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """How far the expected IoU of the masks that were shown can be believed.

    Parameters
    ----------
    bins
        Of equal width over [0, 1], without empty ones, in ascending order.
    error
        Expected calibration error: mean over all masks of how far their bin's expected IoU is from
        its real one.
    """

    bins: tuple[Bin, ...]
    error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One method on one data set by one protocol.

    Parameters
    ----------
    method, data_set, protocol
        What was run.
    version
        Of the method.
    objects, seeds
        How many of each.
    targets
        One entry for each of `TARGETS`.
    iou
        Mean IoU of the selected mask after 1, 2, ... 20 clicks; NaN before the first result.
    oracle
        The same of the best of all masks that the annotator can step to, see `Step`.
    error
        Interval of the Jaccard error, 1 - IoU, after 1, 2, ... 20 clicks.
    first_iou, first_oracle
        IoU of the first result, selected and best of what can be stepped to.
    regret
        Mean over the results after all clicks, not the first alone, of the oracle's IoU minus the
        selected one's.
    worse
        Share of further clicks that made the selected mask worse, in [0, 1].
    click_seconds
        Of one prediction.
    first_mask_seconds
        Of embedding and first prediction together.
    proposals
        Mean number of masks that can be stepped to.
    calibration
        Of the expected IoU; None for methods that expect none.
    """

    method: str
    data_set: str
    protocol: str
    version: str
    objects: int
    seeds: int
    targets: tuple[TargetSummary, ...]
    iou: tuple[float, ...]
    oracle: tuple[float, ...]
    error: tuple[Interval, ...]
    first_iou: Interval
    first_oracle: Interval
    regret: float
    worse: float
    click_seconds: Seconds
    first_mask_seconds: Seconds
    proposals: float
    calibration: Calibration | None = None

    def at(self, iou: float) -> TargetSummary:
        """Look up the summary of one target IoU."""
        return next(target for target in self.targets if target.iou == iou)


def clicks_to(trace: Trace, iou: float) -> int | None:
    """Clicks until the selected mask first reached an IoU; None if it never did."""
    return next((step.clicks for step in trace.steps if step.iou >= iou), None)


def number_of_clicks(trace: Trace, iou: float, *, maximum: int = MAX_CLICKS) -> int:
    """Clicks to reach an IoU, `maximum` where it was never reached (NoC)."""
    reached = clicks_to(trace, iou)
    return maximum if reached is None else min(reached, maximum)


def number_of_actions(trace: Trace, iou: float, *, maximum: int = MAX_CLICKS) -> int:
    """Clicks and steps to reach an IoU, `maximum` where it was never reached."""
    reached = next((action.actions for action in trace.actions if action.iou >= iou), maximum)
    return min(reached, maximum)


def iou_after(trace: Trace, clicks: int, *, oracle: bool = False) -> float:
    """IoU after so many clicks, of the selected mask or of the best that can be stepped to.

    NaN before the first result; the last one where the annotator had stopped before.
    """
    seen = [step for step in trace.steps if step.clicks <= clicks]
    if not seen:
        return float("nan")
    return seen[-1].oracle if oracle else seen[-1].iou


def error_after(trace: Trace, clicks: int) -> float:
    """Jaccard error, 1 - IoU, of the selected mask after so many clicks."""
    return 1.0 - iou_after(trace, clicks)


def table_of(results: Iterable[Result], measure: Callable[[Trace], float]) -> Values:
    """Arrange a measure by object and seed.

    Returns
    -------
    ndarray
        float64 (objects, seeds), objects and seeds sorted; NaN where a run is missing.
    """
    values = {
        ((result.key.data_set, result.key.image, result.key.object), result.key.seed): measure(
            result.trace
        )
        for result in results
    }
    objects = {name: row for row, name in enumerate(sorted({name for name, _ in values}))}
    seeds = {seed: column for column, seed in enumerate(sorted({seed for _, seed in values}))}
    table = np.full((len(objects), len(seeds)), np.nan)
    for (name, seed), value in values.items():
        table[objects[name], seeds[seed]] = value
    return table


def bootstrap_mean(values: Values, *, draws: int = 2000, seed: int = 0) -> Interval:
    """Mean and 95 % interval by a percentile bootstrap over objects and over seeds.

    Each draw takes as many objects, and as many seeds, as there are, with replacement; the value
    of an object is its mean over the seeds that were drawn.

    Parameters
    ----------
    values
        float64 (objects, seeds) or (objects,); NaN is left out.
    draws
        Number of resamples.
    seed
        Of the resampling: the same values always get the same interval.

    Returns
    -------
    Interval
        All NaN if there is no value; no wider than a point if there is one object and one seed.
    """
    values = values[:, np.newaxis] if values.ndim == 1 else values
    present = ~np.isnan(values)
    if not present.any():
        return Interval(mean=np.nan, low=np.nan, high=np.nan)
    filled = np.where(present, values, 0.0)
    generator = np.random.default_rng(seed)
    objects, seeds = values.shape

    def means(seed_counts: Values, object_counts: Values) -> Values:
        sums = seed_counts @ filled.T
        numbers = seed_counts @ present.T.astype(float)
        known = numbers > 0
        per_object = np.divide(sums, numbers, out=np.zeros_like(sums), where=known)
        weight = object_counts * known
        total = weight.sum(axis=1)
        answer: Values = np.divide(
            (per_object * weight).sum(axis=1),
            total,
            out=np.full(len(total), np.nan),
            where=total > 0,
        )
        return answer

    mean = means(np.ones((1, seeds)), np.ones((1, objects)))[0]
    drawn = means(
        generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws).astype(float),
        generator.multinomial(objects, np.full(objects, 1 / objects), size=draws).astype(float),
    )
    low, high = np.nanpercentile(drawn, (2.5, 97.5))
    return Interval(mean=float(mean), low=float(low), high=float(high))


def paired_difference(
    candidate: Sequence[Result],
    reference: Sequence[Result],
    measure: Callable[[Trace], float],
    *,
    seed: int = 0,
) -> Interval:
    """Candidate minus reference, object by object, on the runs that both have.

    Parameters
    ----------
    candidate, reference
        Results of two methods on the same data sets and by the same protocol.
    measure
        For example ``lambda trace: number_of_clicks(trace, 0.85)``.
    seed
        Of the bootstrap.

    Returns
    -------
    Interval
        Below 0 where the candidate has less. All NaN if no run is shared.
    """
    references = {_run(result): result for result in reference}
    shared = [result for result in candidate if _run(result) in references]
    return bootstrap_mean(
        table_of(shared, measure)
        - table_of([references[_run(result)] for result in shared], measure),
        seed=seed,
    )


def _run(result: Result) -> tuple[str, str, str, str, int]:
    """Name what two methods share when they did the same work."""
    key = result.key
    return key.data_set, key.protocol, key.image, key.object, key.seed


def _seconds(values: Sequence[float]) -> Seconds:
    median, p95 = np.percentile(values, (50, 95)) if values else (np.nan, np.nan)
    return Seconds(median=float(median), p95=float(p95))


def _further_clicks(trace: Trace) -> list[bool]:
    """Whether each click after the first result made the selected mask worse."""
    return [
        after.iou < before.iou - WORSE_BY
        for before, after in zip(trace.steps, trace.steps[1:], strict=False)
    ]


def calibrate(pairs: Sequence[tuple[float, float]], *, bins: int = 10) -> Calibration | None:
    """Compare expected with real IoU.

    Parameters
    ----------
    pairs
        Expected and real IoU of each mask, both in [0, 1].
    bins
        Number of bins.

    Returns
    -------
    Calibration or None
        None if there is no pair.
    """
    if not pairs:
        return None
    values = np.array(pairs, dtype=np.float64)
    places = np.minimum((values[:, 0] * bins).astype(int), bins - 1)
    groups = [values[places == place] for place in np.unique(places)]
    found = tuple(
        Bin(count=len(group), expected=float(expected), real=float(real))
        for group in groups
        for expected, real in (group.mean(0),)
    )
    error = sum(entry.count * abs(entry.expected - entry.real) for entry in found) / len(values)
    return Calibration(bins=found, error=error)


def summarise(results: Sequence[Result], *, maximum: int = MAX_CLICKS) -> Summary:
    """Put the runs of one method on one data set by one protocol into numbers.

    Parameters
    ----------
    results
        At least one; all with the same method, data set and protocol.
    maximum
        Clicks at most.
    """
    first = results[0].key
    traces = [result.trace for result in results]
    steps = [step for trace in traces for step in trace.steps]
    further = [worse for trace in traces for worse in _further_clicks(trace)]
    with_actions = all(trace.actions for trace in traces)
    content = min(trace.stop_at for trace in traces)

    def interval(measure: Callable[[Trace], float]) -> Interval:
        return bootstrap_mean(table_of(results, measure))

    error = tuple(interval(partial(error_after, clicks=clicks)) for clicks in range(1, maximum + 1))
    return Summary(
        method=first.method,
        data_set=first.data_set,
        protocol=first.protocol,
        version=results[-1].version,
        objects=len({(r.key.image, r.key.object) for r in results}),
        seeds=len({r.key.seed for r in results}),
        targets=tuple(
            TargetSummary(iou=iou, clicks=_UNKNOWN, failures=math.nan, actions=None)
            if iou > content
            else TargetSummary(
                iou=iou,
                clicks=interval(partial(number_of_clicks, iou=iou, maximum=maximum)),
                failures=float(np.mean([clicks_to(trace, iou) is None for trace in traces])),
                actions=interval(partial(number_of_actions, iou=iou, maximum=maximum))
                if with_actions
                else None,
            )
            for iou in TARGETS
        ),
        iou=tuple(1.0 - entry.mean for entry in error),
        oracle=tuple(
            bootstrap_mean(
                table_of(results, partial(iou_after, clicks=clicks, oracle=True)), draws=1
            ).mean
            for clicks in range(1, maximum + 1)
        ),
        error=error,
        first_iou=interval(lambda trace: trace.steps[0].iou),
        first_oracle=interval(lambda trace: trace.steps[0].oracle),
        regret=float(np.mean([step.oracle - step.iou for step in steps])),
        worse=float(np.mean(further)) if further else 0.0,
        click_seconds=_seconds([step.seconds for step in steps]),
        first_mask_seconds=_seconds(
            [trace.embed_seconds + trace.steps[0].seconds for trace in traces]
        ),
        proposals=float(np.mean([step.proposals for step in steps])),
        calibration=calibrate(
            [(step.expected, step.iou) for step in steps if step.expected is not None]
        ),
    )
