"""Where the parts of a chart lie; the templates draw them as SVG, so that no script is needed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from lidiv_backend.learning.usage import Cost

#: Size of a chart in its own units; it is scaled to the width that there is.
WIDTH, HEIGHT = 640.0, 260.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 56.0, 16.0, 16.0, 44.0
# More points than pixels help nobody.
_MAX_POINTS = 320


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A mark on an axis: where it is, and what it says."""

    at: float
    text: str


@dataclass(frozen=True, kw_only=True)
class DayMark:
    """A day with accepted masks: mean, quartiles, and what it says when it is pointed at."""

    x: float
    mean: float
    low: float
    high: float
    radius: float
    title: str


@dataclass(frozen=True, kw_only=True)
class Flag:
    """Something that happened on a day."""

    x: float
    title: str


@dataclass(frozen=True, kw_only=True)
class DailyChart:
    """Clicks per accepted mask over time.

    Parameters
    ----------
    x_ticks, y_ticks
        Of the axes.
    days
        In order.
    line
        Points of the line through the means, as SVG wants them.
    flags
        Promotions.
    """

    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    days: tuple[DayMark, ...]
    line: str
    flags: tuple[Flag, ...]


@dataclass(frozen=True, kw_only=True)
class Series:
    """A line of a chart; `number` chooses its colour."""

    name: str
    number: int
    line: str


@dataclass(frozen=True, kw_only=True)
class LineChart:
    """Curves over a common axis."""

    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    series: tuple[Series, ...]


@dataclass(frozen=True, kw_only=True)
class Slope:
    """One image in a `PairChart`: clicks before and after."""

    before: float
    after: float
    kind: str


@dataclass(frozen=True, kw_only=True)
class PairChart:
    """Clicks per image before and after, joined."""

    left: float
    right: float
    y_ticks: tuple[Tick, ...]
    slopes: tuple[Slope, ...]
    mean: Slope


@dataclass(frozen=True, kw_only=True)
class IntervalChart:
    """A difference with its interval, and where no difference would be."""

    ticks: tuple[Tick, ...]
    zero: float
    low: float
    high: float
    mean: float
    kind: str


@dataclass(frozen=True, kw_only=True)
class SpreadStrip:
    """Quartiles, median and mean on a strip of 0 to 100."""

    low: float
    median: float
    high: float
    mean: float


def daily_chart(costs: Mapping[date, Cost], promotions: Sequence[tuple[date, str]]) -> DailyChart:
    """Lay out clicks per accepted mask over time.

    Parameters
    ----------
    costs
        For each day; at least one.
    promotions
        Days on which a version was put in use, with what is to be said of it.
    """
    first, last = min(costs), max(costs)
    # One day alone stands in the middle.
    span = max((last - first).days, 2)
    begin = first - timedelta(days=(span - (last - first).days) // 2)

    def place(day: date) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * (0.02 + 0.96 * (day - begin).days / span)

    top = max(max(cost.clicks.high, cost.clicks.mean) for cost in costs.values())
    ticks = _nice_ticks(0.0, max(2.0, top), most=5)
    scale = _Scale(0.0, ticks[-1])
    largest = max(cost.masks for cost in costs.values())
    days = tuple(
        DayMark(
            x=_r(place(day)),
            mean=scale.y(cost.clicks.mean),
            low=scale.y(cost.clicks.low),
            high=scale.y(cost.clicks.high),
            radius=_r(3.5 + 4.5 * math.sqrt(cost.masks / largest)),
            title=f"{day:%Y-%m-%d}: {cost.masks} mask{'s' * (cost.masks != 1)}, mean "
            f"{cost.clicks.mean:.1f} clicks, half of them {cost.clicks.low} to "
            f"{cost.clicks.high}",
        )
        for day, cost in sorted(costs.items())
    )
    step = max(1, math.ceil(((last - first).days + 1) / 5))
    shown = [first + timedelta(days=n) for n in range(0, (last - first).days + 1, step)]
    return DailyChart(
        x_ticks=tuple(Tick(at=_r(place(day)), text=f"{day:%m-%d}") for day in shown),
        y_ticks=tuple(Tick(at=scale.y(value), text=f"{value:g}") for value in ticks),
        days=days,
        line=" ".join(f"{mark.x},{mark.mean}" for mark in days),
        flags=tuple(
            Flag(x=_r(place(day)), title=title) for day, title in promotions if first <= day <= last
        ),
    )


def line_chart(
    curves: Mapping[str, Sequence[tuple[float, float]]], *, from_zero: bool
) -> LineChart | None:
    """Lay out curves.

    Parameters
    ----------
    curves
        Name -> points, ordered by x.
    from_zero
        Whether the axis begins at 0; otherwise at the smallest value.

    Returns
    -------
    LineChart or None
        None without two points that are finite.
    """
    finite = {
        name: [point for point in points if math.isfinite(point[0]) and math.isfinite(point[1])]
        for name, points in curves.items()
    }
    points = [point for part in finite.values() for point in part]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    if len(set(xs)) < 2:
        return None
    y_ticks = _nice_ticks(0.0 if from_zero else min(ys), max(ys), most=5)
    x_ticks = [x for x in _nice_ticks(min(xs), max(xs), most=5) if min(xs) <= x <= max(xs)]
    scale = _Scale(y_ticks[0], y_ticks[-1])

    def place(x: float) -> float:
        return _r(_LEFT + (WIDTH - _LEFT - _RIGHT) * (x - min(xs)) / (max(xs) - min(xs)))

    return LineChart(
        x_ticks=tuple(Tick(at=place(x), text=f"{x:g}") for x in x_ticks),
        y_ticks=tuple(Tick(at=scale.y(y), text=f"{y:g}") for y in y_ticks),
        series=tuple(
            Series(
                name=name,
                number=number,
                line=" ".join(f"{place(x)},{scale.y(y)}" for x, y in _thinned(part)),
            )
            for number, (name, part) in enumerate(finite.items())
            if part
        ),
    )


def pair_chart(pairs: Sequence[tuple[float, float]]) -> PairChart | None:
    """Lay out clicks per image before and after; None without any.

    Parameters
    ----------
    pairs
        Candidate and model in use, for each image.
    """
    if not pairs:
        return None
    ticks = _nice_ticks(0.0, max(2.0, *(max(pair) for pair in pairs)), most=5)
    scale = _Scale(0.0, ticks[-1])

    def slope(before: float, after: float) -> Slope:
        kind = "fewer" if after < before else "more" if after > before else "same"
        return Slope(before=scale.y(before), after=scale.y(after), kind=kind)

    count = len(pairs)
    return PairChart(
        left=_LEFT + 60,
        right=WIDTH - _RIGHT - 120,
        y_ticks=tuple(Tick(at=scale.y(value), text=f"{value:g}") for value in ticks),
        slopes=tuple(slope(before, after) for after, before in pairs),
        mean=slope(sum(pair[1] for pair in pairs) / count, sum(pair[0] for pair in pairs) / count),
    )


def interval_chart(mean: float, low: float, high: float) -> IntervalChart | None:
    """Lay out a difference with its interval on 0 to 100; None if it is not finite."""
    if not all(math.isfinite(value) for value in (mean, low, high)):
        return None
    reach = max(abs(low), abs(high), 0.5)
    ticks = _nice_ticks(-reach, reach, most=5)
    begin, end = ticks[0], ticks[-1]

    def place(value: float) -> float:
        return _r(100 * (value - begin) / (end - begin))

    return IntervalChart(
        ticks=tuple(Tick(at=place(value), text=f"{value:+g}" if value else "0") for value in ticks),
        zero=place(0.0),
        low=place(low),
        high=place(high),
        mean=place(mean),
        kind="fewer" if high < 0 else "more" if low > 0 else "same",
    )


def spread_strip(cost: Cost, *, most: float) -> SpreadStrip:
    """Lay out the clicks of a group of masks.

    Parameters
    ----------
    cost
        Of the group.
    most
        Clicks at the end of the strip; the same for all that are compared.
    """

    def place(value: float) -> float:
        return _r(100 * min(1.0, value / most))

    clicks = cost.clicks
    return SpreadStrip(
        low=place(clicks.low),
        median=place(clicks.median),
        high=place(clicks.high),
        mean=place(clicks.mean),
    )


class _Scale:
    """Values to heights in a chart."""

    def __init__(self, low: float, high: float) -> None:
        self._low, self._high = low, high

    def y(self, value: float) -> float:
        share = (value - self._low) / (self._high - self._low)
        return _r(HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * share)


def _nice_ticks(low: float, high: float, *, most: int) -> list[float]:
    """Round numbers that begin at or below `low` and end at or above `high`."""
    if high <= low:
        low, high = low - 0.5, low + 0.5
    raw = (high - low) / (most - 1)
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= raw)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 10) for number in range(first, last + 1)]


def _thinned(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    step = math.ceil(len(points) / _MAX_POINTS)
    return [*points[:-1:step], points[-1]]


def _r(value: float) -> float:
    return round(value, 1)
