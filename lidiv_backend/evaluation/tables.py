"""Summaries as Markdown and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lidiv_backend.evaluation.measures import TARGETS, Interval, Summary, summarise
from lidiv_backend.evaluation.results import Contents, Problem, Result, RunKey


def summaries_of(results: Sequence[Result]) -> list[Summary]:
    """Summarise every method on every data set by every protocol, in order of appearance."""
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for result in results:
        groups.setdefault(_group(result.key), []).append(result)
    return [summarise(group) for group in groups.values()]


def _group(key: RunKey) -> tuple[str, str, str]:
    return key.data_set, key.protocol, key.method


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a table in Markdown: first column to the left, the others to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def show_interval(interval: Interval, *, digits: int = 2) -> str:
    """Write a mean with its interval, such as ``3.20 (2.81 to 3.66)``."""
    if math.isnan(interval.mean):
        return "-"
    mean, low, high = (
        f"{value:.{digits}f}" for value in (interval.mean, interval.low, interval.high)
    )
    return f"{mean} ({low} to {high})"


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.1f} %"


def render_markdown(summaries: Sequence[Summary], problems: Sequence[Problem]) -> str:
    """Write all summaries and what was left out.

    Parameters
    ----------
    summaries
        In the order in which they are to appear; grouped by data set and protocol.
    problems
        Counted and listed below the tables.
    """
    parts = []
    groups: dict[tuple[str, str], list[Summary]] = {}
    for summary in summaries:
        groups.setdefault((summary.data_set, summary.protocol), []).append(summary)
    for (data_set, protocol), group in groups.items():
        parts += [
            f"## {data_set}, protocol {protocol}",
            _clicks_table(group),
            _quality_table(group),
        ]
    if problems:
        defects = sum(problem.defect for problem in problems)
        parts.append(
            f"## Left out: {len(problems)} records or runs, {defects} by a defect of a method"
        )
        parts.append(
            "\n".join(
                f"- {p.data_set} {p.object or p.image}{f' ({p.run})' if p.run else ''}: {p.reason}"
                for p in problems
            )
        )
    return "\n\n".join(parts) + "\n"


def render_summary(summary: Summary) -> str:
    """Write one summary as a table of its own, for a model card."""
    rows = [
        *(
            (
                f"clicks to {100 * target.iou:.0f} % IoU",
                f"{show_interval(target.clicks)}, failed {_percent(target.failures)}",
            )
            for target in summary.targets
            if not math.isnan(target.clicks.mean)
        ),
        *(
            (f"actions to {100 * target.iou:.0f} % IoU", show_interval(target.actions))
            for target in summary.targets
            if target.actions is not None
        ),
        ("IoU of the first mask", show_interval(summary.first_iou, digits=3)),
        ("best proposal of the first click", show_interval(summary.first_oracle, digits=3)),
        ("regret of the selection", f"{summary.regret:.3f}"),
        ("further clicks that made it worse", f"{100 * summary.worse:.1f} %"),
        *(
            [("calibration error of the expected IoU", f"{summary.calibration.error:.3f}")]
            if summary.calibration is not None
            else []
        ),
        ("objects x seeds", f"{summary.objects} x {summary.seeds}"),
    ]
    return markdown_table(("measure", "mean (95 % interval)"), rows)


def _clicks_table(group: Sequence[Summary]) -> str:
    percent = [f"{100 * iou:.0f} %" for iou in TARGETS]
    header = [
        "method",
        "objects x seeds",
        *(f"clicks to {p}" for p in percent),
        *(f"failed {p}" for p in percent),
        *(f"actions to {p}" for p in percent[:2]),
    ]
    rows = []
    for summary in group:
        actions = [summary.at(iou).actions for iou in TARGETS[:2]]
        rows.append(
            [
                summary.method,
                f"{summary.objects} x {summary.seeds}",
                *(show_interval(summary.at(iou).clicks) for iou in TARGETS),
                *(_percent(summary.at(iou).failures) for iou in TARGETS),
                *(show_interval(entry) if entry is not None else "-" for entry in actions),
            ]
        )
    return markdown_table(header, rows)


def _quality_table(group: Sequence[Summary]) -> str:
    header = [
        "method",
        "IoU of first mask",
        "best proposal",
        "IoU at 3 clicks",
        "at 5",
        "at 20",
        "regret",
        "worse after a click",
        "proposals",
        "s per click (p95)",
        "s first mask (p95)",
    ]
    rows = [
        [
            s.method,
            show_interval(s.first_iou, digits=3),
            show_interval(s.first_oracle, digits=3),
            *(f"{s.iou[clicks - 1]:.3f}" for clicks in (3, 5, 20)),
            f"{s.regret:.3f}",
            f"{100 * s.worse:.1f} %",
            f"{s.proposals:.1f}",
            f"{s.click_seconds.median:.3f} ({s.click_seconds.p95:.3f})",
            f"{s.first_mask_seconds.median:.3f} ({s.first_mask_seconds.p95:.3f})",
        ]
        for s in group
    ]
    return markdown_table(header, rows)


def render_json(summaries: Sequence[Summary], problems: Sequence[Problem]) -> str:
    """Write the same as JSON; what was not measured is null."""
    return json.dumps(
        {
            "summaries": [_plain(asdict(summary)) for summary in summaries],
            "problems": [asdict(problem) for problem in problems],
        },
        indent=1,
        allow_nan=False,
    )


def write_summaries(folder: Path, contents: Contents) -> str:
    """Write ``summary.md`` and ``summary.json`` beside the results; gives the former's text."""
    summaries = summaries_of(contents.latest())
    text = render_markdown(summaries, contents.problems)
    (folder / "summary.md").write_text(text, encoding="utf-8")
    json_text = render_json(summaries, contents.problems)
    (folder / "summary.json").write_text(json_text, encoding="utf-8")
    return text


def _plain(value: Any) -> Any:
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value
