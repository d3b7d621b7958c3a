"""Curves of an evaluation. matplotlib is imported when something is drawn."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lidiv_backend.evaluation.measures import Interval, Summary
from lidiv_backend.evaluation.reference import look_of

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANEL = (5.6, 4.2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A line of Figure 5 or 6.

    Parameters
    ----------
    name
        For the legend.
    colour
        ``#rrggbb``.
    points
        x and the interval at it.
    dashed
        How it is drawn.
    """

    name: str
    colour: str
    points: tuple[tuple[float, Interval], ...]
    dashed: bool = False


def draw_error_curves(summaries: Sequence[Summary]) -> bytes:
    """Draw Figure 3: Jaccard error against clicks, a panel for each data set.

    Parameters
    ----------
    summaries
        All by the same protocol.

    Returns
    -------
    bytes
        A PNG.
    """
    data_sets = list(dict.fromkeys(summary.data_set for summary in summaries))
    figure, panels = _figure(len(data_sets))
    for panel, data_set in zip(panels, data_sets, strict=True):
        group = [summary for summary in summaries if summary.data_set == data_set]
        highest = 0.0
        for summary in group:
            look = look_of(summary.method)
            drawn = [
                (clicks, error)
                for clicks, error in enumerate(summary.error, start=1)
                if not math.isnan(error.mean)
            ]
            x = [clicks for clicks, _ in drawn]
            panel.plot(
                x,
                [error.mean for _, error in drawn],
                color=look.colour,
                label=look.title,
                linewidth=2,
                marker="o",
                markersize=3,
            )
            panel.fill_between(
                x,
                [error.low for _, error in drawn],
                [error.high for _, error in drawn],
                color=look.colour,
                alpha=0.12,
                linewidth=0,
            )
            highest = max(highest, *(error.high for _, error in drawn))
        panel.set(
            title=data_set,
            xlabel="clicks",
            ylabel="Jaccard error (1 - IoU), lower is better",
            xlim=(0.5, len(group[0].error) + 0.5),
            ylim=(0, min(1.0, highest * 1.05) or 1.0),
        )
        panel.set_xticks([1, *range(5, len(group[0].error) + 1, 5)])
    _legend(figure, panels)
    return _png(figure)


def draw_alternatives(summaries: Sequence[Summary]) -> bytes:
    """Draw IoU after each click, of the selected mask and of the best proposal.

    Parameters
    ----------
    summaries
        All by the same protocol, of methods with more than one proposal.

    Returns
    -------
    bytes
        A PNG.
    """
    data_sets = list(dict.fromkeys(summary.data_set for summary in summaries))
    figure, panels = _figure(len(data_sets))
    for panel, data_set in zip(panels, data_sets, strict=True):
        group = [summary for summary in summaries if summary.data_set == data_set]
        for summary in group:
            look = look_of(summary.method)
            x = range(1, len(summary.iou) + 1)
            panel.plot(
                x, summary.oracle, "--", color=look.colour, label=f"{look.title}: best proposal"
            )
            panel.plot(x, summary.iou, color=look.colour, label=f"{look.title}: selected mask")
            panel.fill_between(
                x, summary.iou, summary.oracle, color=look.colour, alpha=0.15, linewidth=0
            )
        panel.set(
            title=data_set,
            xlabel="clicks",
            ylabel="IoU, higher is better",
            xlim=(0.5, len(group[0].iou) + 0.5),
            ylim=(min(min(s.iou) for s in group) - 0.03, 1),
        )
        panel.set_xticks([1, *range(5, len(group[0].iou) + 1, 5)])
    _legend(figure, panels)
    return _png(figure)


def draw_calibration(summaries: Sequence[Summary]) -> bytes:
    """Draw real against expected IoU of the masks that were shown, a panel for each data set.

    Parameters
    ----------
    summaries
        All by the same protocol, of methods that expect an IoU.

    Returns
    -------
    bytes
        A PNG.
    """
    data_sets = list(dict.fromkeys(summary.data_set for summary in summaries))
    figure, panels = _figure(len(data_sets))
    for panel, data_set in zip(panels, data_sets, strict=True):
        panel.plot([0, 1], [0, 1], ":", color="#888888", label="as expected")
        for summary in summaries:
            if summary.data_set != data_set or summary.calibration is None:
                continue
            look, bins = look_of(summary.method), summary.calibration.bins
            most = max(entry.count for entry in bins)
            expected, real = ([entry.expected for entry in bins], [entry.real for entry in bins])
            panel.plot(
                expected,
                real,
                color=look.colour,
                label=f"{look.title}: calibration error {summary.calibration.error:.3f}",
            )
            sizes = [12 + 140 * entry.count / most for entry in bins]
            panel.scatter(expected, real, s=sizes, color=look.colour, alpha=0.6)
        panel.set(
            title=data_set,
            xlabel="IoU that was expected",
            ylabel="IoU that it was",
            xlim=(0, 1),
            ylim=(0, 1),
        )
    _legend(figure, panels)
    return _png(figure)


def draw_series(series: Sequence[Series], *, xlabel: str, ylabel: str) -> bytes:
    """Draw Figure 5: clicks against M.

    Returns
    -------
    bytes
        A PNG.
    """
    figure, (panel,) = _figure(1)
    for line in series:
        x = [x for x, _ in line.points]
        means = [value.mean for _, value in line.points]
        reach = [
            [value.mean - value.low for _, value in line.points],
            [value.high - value.mean for _, value in line.points],
        ]
        panel.errorbar(
            x,
            means,
            yerr=reach,
            color=line.colour,
            linestyle="--" if line.dashed else "-",
            marker="o",
            capsize=3,
            label=line.name,
        )
    panel.set(xlabel=xlabel, ylabel=ylabel)
    panel.set_xticks(sorted({x for line in series for x, _ in line.points}))
    _legend(figure, [panel])
    return _png(figure)


def draw_clicks_to_error(series: Sequence[Series]) -> bytes:
    """Draw Figure 6: actions (horizontal) that it took to come down to an error (vertical).

    Parameters
    ----------
    series
        A line for each model; x is the Jaccard error, the interval is of clicks and steps to
        other proposals.

    Returns
    -------
    bytes
        A PNG.
    """
    figure, (panel,) = _figure(1)
    for line in series:
        errors = [error for error, _ in line.points]
        actions = [value for _, value in line.points]
        panel.fill_betweenx(
            errors,
            [value.low for value in actions],
            [value.high for value in actions],
            color=line.colour,
            alpha=0.15,
            linewidth=0,
        )
        panel.plot(
            [value.mean for value in actions],
            errors,
            color=line.colour,
            marker="o",
            label=line.name,
        )
    panel.set(
        xlabel="clicks and steps to other proposals, fewer is better",
        ylabel="Jaccard error",
        ylim=(0, None),
    )
    _legend(figure, [panel])
    return _png(figure)


def _figure(panels: int) -> tuple[Figure, list[Axes]]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    columns = min(panels, 2)
    rows = -(-panels // columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(_PANEL[0] * columns, _PANEL[1] * rows),
        layout="constrained",
        squeeze=False,
    )
    found = list(axes.flat)
    for spare in found[panels:]:
        spare.set_visible(False)
    for axis in found[:panels]:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, found[:panels]


def _legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """One legend below all panels: the same method has the same colour in each."""
    handles: dict[str, Artist] = {}
    for panel in panels:
        found, labels = panel.get_legend_handles_labels()
        for handle, label in zip(found, labels, strict=True):
            handles.setdefault(str(label), handle)
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=min(3 if len(panels) > 1 else 2, max(1, len(handles))),
        frameon=False,
    )


def _png(figure: Figure) -> bytes:
    from matplotlib import pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    plt.close(figure)
    return buffer.getvalue()
