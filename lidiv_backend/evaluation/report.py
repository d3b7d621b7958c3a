"""The page about an evaluation: one HTML file that needs nothing else, and its figures as PNGs."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from lidiv_backend.errors import DataError
from lidiv_backend.evaluation.figures import (
    Series,
    draw_alternatives,
    draw_calibration,
    draw_error_curves,
    draw_series,
)
from lidiv_backend.evaluation.gallery import Gallery, Row, compared_methods, draw_rows
from lidiv_backend.evaluation.measures import TARGETS, Interval, Summary, summarise
from lidiv_backend.evaluation.protocols import MAX_CLICKS, ClickProtocol
from lidiv_backend.evaluation.reference import (
    FIGURE_5,
    PAPER_CLICKS,
    PAPER_SETS,
    TABLE_2,
    TABLE_3,
    TABLE_4,
    TABLE_4_PAPER,
    is_experiment,
    look_of,
    title_of,
)
from lidiv_backend.evaluation.results import Contents, Result, read_results

#: The page's name in a folder of results.
PAGE = "report.html"
#: If a folder of results has this file, the page shows its paragraphs: what numbers do not say.
NOTES = "notes.md"
_FIGURES = "figures"

_SERIES_COLOURS = ("#1f4e9c", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17a2b8")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell of a table.

    Parameters
    ----------
    text
        What it says.
    notes
        Small lines below.
    best
        The best of its column.
    """

    text: str
    notes: tuple[str, ...] = ()
    best: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of the page.

    Parameters
    ----------
    header
        One text for each column.
    rows
        The first cell names the row.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure of the page, which is also written as a PNG.

    Parameters
    ----------
    name
        Of the file, without suffix.
    caption
        What it shows.
    png
        Its bytes.
    """

    name: str
    caption: str
    png: bytes

    @property
    def source(self) -> str:
        """The picture as an address that holds it."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


@dataclass(frozen=True, kw_only=True)
class Block:
    """A heading with what stands under it, in this order.

    Parameters
    ----------
    title
        The heading.
    paragraphs, table, points, pictures, rows
        Texts, a table, a list, figures, and rows of photographs.
    name
        Of the file that the rows are also written to, without suffix.
    """

    title: str
    paragraphs: tuple[str, ...] = ()
    table: Table | None = None
    points: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    rows: tuple[Row, ...] = ()
    name: str = ""


def write_report(folder: Path, *, photographs: bool = True) -> Path:
    """Write the page about what a folder of results holds.

    Parameters
    ----------
    folder
        Written by `lidiv_backend.evaluation.runner.evaluate`.
    photographs
        Show images of the data sets. Without, the page shows outlines on blank paper instead: a
        data set's photographs may not be ours to publish.

    Returns
    -------
    Path
        The page. Its figures are beside it in ``figures/``.

    Raises
    ------
    DataError
        If there is nothing to report.
    """
    contents = read_results(folder)
    results = contents.latest()
    if not results:
        raise DataError(f"{folder} holds no results.", remedy="Run `lidiv evaluate` first.")
    blocks = [
        *_main_blocks(results),
        *_experiment_blocks(results),
        *_gallery_blocks(contents, photographs=photographs),
        _how(contents, results),
        *_left_out(contents),
    ]
    figures = folder / _FIGURES
    figures.mkdir(exist_ok=True)
    for block in blocks:
        for picture in block.pictures:
            (figures / f"{picture.name}.png").write_bytes(picture.png)
        if block.rows:
            (figures / f"{block.name}.png").write_bytes(draw_rows(block.rows))
    environment = Environment(
        loader=PackageLoader("lidiv_backend.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["jpeg"] = lambda tile: base64.b64encode(tile.jpeg()).decode()
    notes = folder / NOTES
    page = environment.get_template("report.html").render(
        blocks=blocks,
        headline=_headline(results),
        notes=_paragraphs(notes.read_text(encoding="utf-8")) if notes.exists() else [],
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        max_clicks=MAX_CLICKS,
    )
    path = folder / PAGE
    path.write_text(page, encoding="utf-8")
    return path


def _paragraphs(text: str) -> list[str]:
    return [part.strip() for part in text.split("\n\n") if part.strip()]


def compare(results: Iterable[Result], labels: Sequence[str]) -> list[Summary]:
    """Summarise methods on the objects that all of them did.

    Parameters
    ----------
    results
        Of one data set and one protocol.
    labels
        Which methods, in the order in which they are to appear.
    """
    by_method: dict[str, list[Result]] = {label: [] for label in labels}
    for result in results:
        if result.key.method in by_method:
            by_method[result.key.method].append(result)
    present = {label: own for label, own in by_method.items() if own}
    objects = [{(r.key.image, r.key.object) for r in own} for own in present.values()]
    shared = set.intersection(*objects) if objects else set()
    kept = {
        label: [r for r in own if (r.key.image, r.key.object) in shared]
        for label, own in present.items()
    }
    return [summarise(own) for own in kept.values() if own]


def _groups(results: Iterable[Result]) -> dict[tuple[str, str], list[Result]]:
    """Results by protocol and data set, in order of appearance."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.key.protocol, result.key.data_set), []).append(result)
    return groups


def _ordered(labels: Iterable[str]) -> list[str]:
    """Methods of Table 2 in its order, then all others that are no experiments."""
    present = dict.fromkeys(labels)
    known = [label for label in TABLE_2 if label in present]
    return known + [label for label in present if label not in TABLE_2 and not is_experiment(label)]


_PROTOCOLS = {
    "sampled": "Clicks at random places (the paper's protocol)",
    "centre": "Clicks at the centre of the largest error",
}


def _main_blocks(results: Sequence[Result]) -> list[Block]:
    """Table 2, Figure 3 and what alternatives are worth, for each protocol."""
    blocks = []
    labels = _ordered(result.key.method for result in results)
    groups = _groups(results)
    for protocol in (p.value for p in (ClickProtocol.SAMPLED, ClickProtocol.CENTRE)):
        compared = [
            summaries
            for (of_protocol, _), group in groups.items()
            if of_protocol == protocol and (summaries := compare(group, labels))
        ]
        if not compared:
            continue
        flat = [summary for summaries in compared for summary in summaries]
        blocks.append(
            Block(
                title=f"{_PROTOCOLS[protocol]}: clicks to a good mask",
                paragraphs=(
                    "How many clicks a method needs, on average, until its mask overlaps the "
                    "wanted one by 85, 90 or 95 %; fewer is better, the best of each column is "
                    "bold. Below it are the interval in which the average would fall in 95 of 100 "
                    f"repetitions with other objects and other clicks, the share of objects that "
                    f"{MAX_CLICKS} clicks did not suffice for, and what the paper reports where "
                    "it does (Table 2; its COCO objects are others).",
                ),
                table=_clicks_table(compared),
                points=tuple(_order_notes(compared)),
                pictures=(
                    Picture(
                        name=f"error-{protocol}",
                        caption="Error after each click (Figure 3). The band is the 95 % "
                        "interval. Classical systems begin at two clicks, for they need one on "
                        "the object and one beside it.",
                        png=draw_error_curves(flat),
                    ),
                ),
            )
        )
        blocks.append(
            Block(
                title=f"Time, protocol {protocol}",
                paragraphs=(
                    "Seconds on the machine named below, median and 95th percentile. The first "
                    "mask includes everything that is computed once for an image.",
                ),
                table=_time_table(compared),
            )
        )
        several = [summary for summary in flat if summary.proposals > 1]
        if several:
            blocks.append(
                Block(
                    title=f"What alternatives are worth, protocol {protocol}",
                    paragraphs=(
                        "A click can mean the jacket or the person. A method with several "
                        "proposals shows the one that it thinks best; the best proposal is the "
                        "one that overlaps the wanted mask most, of all that can be stepped to, "
                        "those that the method looks ahead to included. Their distance, the "
                        "regret, as a mean over all clicks, is what it costs to see the first one "
                        "only. Actions count clicks and steps to another proposal alike, for an "
                        "annotator who does whichever helps more: where they are fewer than the "
                        "clicks, alternatives save work.",
                    ),
                    table=_alternatives_table(several),
                    pictures=(
                        Picture(
                            name=f"alternatives-{protocol}",
                            caption="The selected mask, and above it (dashed) the best of all that "
                            "can be stepped to.",
                            png=draw_alternatives(several),
                        ),
                    ),
                )
            )
        rated = [summary for summary in flat if summary.calibration is not None]
        if rated:
            blocks.append(
                Block(
                    title=f"Whether the score can be believed, protocol {protocol}",
                    paragraphs=(
                        "The score of a proposal is the IoU that the model expects of it. Masks "
                        "that were shown are put together by what was expected of them; on the "
                        "dotted line they were as good as expected, below it not as good. The "
                        "calibration error is the mean distance from that line.",
                    ),
                    pictures=(
                        Picture(
                            name=f"calibration-{protocol}",
                            caption="Real against expected IoU; large dots stand for many masks.",
                            png=draw_calibration(rated),
                        ),
                    ),
                )
            )
    return blocks


def _clicks_table(compared: Sequence[Sequence[Summary]]) -> Table:
    labels = _ordered(s.method for summaries in compared for s in summaries)
    columns = [
        (summaries[0].data_set, iou, {s.method: s for s in summaries})
        for summaries in compared
        for iou in TARGETS
    ]
    best = [
        min(
            (s.at(iou).clicks.mean for s in own.values()), key=lambda mean: (math.isnan(mean), mean)
        )
        for _, iou, own in columns
    ]
    rows = []
    for label in labels:
        cells = [Cell(text=title_of(label), notes=_sizes(compared, label))]
        for (data_set, iou, own), lowest in zip(columns, best, strict=True):
            if label not in own or math.isnan(own[label].at(iou).clicks.mean):
                cells.append(Cell(text="-"))
                continue
            target = own[label].at(iou)
            notes = [f"failed {100 * target.failures:.0f} %"]
            reported = _paper(label, data_set, iou)
            if reported is not None:
                notes.append(f"paper {reported:.2f}")
            cells.append(_interval_cell(target.clicks, *notes, lowest=lowest))
        if len(compared) > 1:
            for iou in TARGETS[:2]:
                means = [
                    s[label].at(iou).clicks.mean for _, i, s in columns if i == iou and label in s
                ]
                complete = len(means) == len(compared) and not any(map(math.isnan, means))
                cells.append(Cell(text=f"{sum(means) / len(means):.2f}" if complete else "-"))
        rows.append(tuple(cells))
    header = ["", *(f"{data_set} {100 * iou:.0f}%" for data_set, iou, _ in columns)]
    if len(compared) > 1:
        header += ["mean 85%", "mean 90%"]
    return Table(header=tuple(header), rows=tuple(rows))


def _interval_cell(
    interval: Interval, *notes: str, digits: int = 2, lowest: float | None = None
) -> Cell:
    """Show a mean, its interval below, and more below that."""
    if math.isnan(interval.mean):
        return Cell(text="-")
    reach = f"{interval.low:.{digits}f} to {interval.high:.{digits}f}"
    return Cell(
        text=f"{interval.mean:.{digits}f}", notes=(reach, *notes), best=interval.mean == lowest
    )


def _sizes(compared: Sequence[Sequence[Summary]], label: str) -> tuple[str, ...]:
    own = [s for summaries in compared for s in summaries if s.method == label]
    return tuple(f"{s.data_set}: {_size(s)}" for s in own)


def _size(summary: Summary) -> str:
    seeds = f", {summary.seeds} seeds" if summary.seeds > 1 else ""
    return f"{summary.objects} objects{seeds}"


def _paper(label: str, data_set: str, iou: float) -> float | None:
    """What the paper reports for a method on a data set, None where it does not."""
    reported = PAPER_CLICKS.get(label, {}).get(PAPER_SETS.get(data_set, ""))
    if reported is None or iou not in (0.85, 0.90):
        return None
    return reported[0] if iou == 0.85 else reported[1]


def _order_notes(compared: Sequence[Sequence[Summary]]) -> list[str]:
    """Say where the order of methods differs from the paper's."""
    notes = []
    for summaries in compared:
        data_set = summaries[0].data_set
        known = [
            (summary, reported)
            for summary in summaries
            if (reported := _paper(summary.method, data_set, 0.85)) is not None
        ]
        turned = 0
        for (first, paper_first), (second, paper_second) in combinations(known, 2):
            here = first.at(0.85).clicks, second.at(0.85).clicks
            if (here[0].mean - here[1].mean) * (paper_first - paper_second) >= 0:
                continue
            turned += 1
            overlap = here[0].low <= here[1].high and here[1].low <= here[0].high
            notes.append(
                f"{data_set}: {title_of(first.method)} needs {here[0].mean:.2f} clicks to 85 %, "
                f"{title_of(second.method)} {here[1].mean:.2f}; in the paper it is the other way "
                f"round ({paper_first:.2f} and {paper_second:.2f}). "
                + (
                    "The intervals overlap, so these objects do not decide it."
                    if overlap
                    else "The intervals do not overlap."
                )
            )
        if len(known) > 1 and not turned:
            notes.append(f"{data_set}: the methods come in the paper's order.")
    return notes


def _time_table(compared: Sequence[Sequence[Summary]]) -> Table:
    labels = _ordered(s.method for summaries in compared for s in summaries)
    header = [""]
    for summaries in compared:
        header += [f"{summaries[0].data_set}, first mask", f"{summaries[0].data_set}, each click"]
    rows = []
    for label in labels:
        cells = [Cell(text=title_of(label))]
        for summaries in compared:
            own = next((s for s in summaries if s.method == label), None)
            times = () if own is None else (own.first_mask_seconds, own.click_seconds)
            cells += [Cell(text=f"{time.median:.3f} ({time.p95:.3f})") for time in times]
            cells += [Cell(text="-")] * (2 - len(times))
        rows.append(tuple(cells))
    return Table(header=tuple(header), rows=tuple(rows))


def _alternatives_table(summaries: Sequence[Summary]) -> Table:
    header = (
        "",
        "data set",
        "proposals",
        "first mask, selected",
        "first mask, best",
        "regret, all clicks",
        "clicks to 85%",
        "actions to 85%",
        "clicks to 90%",
        "actions to 90%",
        "a click made it worse",
    )
    rows = []
    for s in summaries:
        cells = [
            Cell(text=title_of(s.method)),
            Cell(text=s.data_set, notes=(_size(s),)),
            Cell(text=f"{s.proposals:.1f}"),
            _interval_cell(s.first_iou, digits=3),
            _interval_cell(s.first_oracle, digits=3),
            Cell(text=f"{s.regret:.3f}"),
        ]
        for iou in (0.85, 0.90):
            actions = s.at(iou).actions
            cells.append(_interval_cell(s.at(iou).clicks))
            cells.append(Cell(text="-") if actions is None else _interval_cell(actions))
        rows.append((*cells, Cell(text=f"{100 * s.worse:.1f} %")))
    return Table(header=header, rows=tuple(rows))


def _experiment_blocks(results: Sequence[Result]) -> list[Block]:
    """Table 3, Table 4 and Figure 5, where their methods were measured."""
    blocks = []
    for title, titles, reported, text in (
        (
            "Ablation: what each idea contributes (Table 3)",
            {label: name for label, (name, _) in TABLE_3.items()},
            {label: f"paper, DAVIS 85%: {clicks:.2f}" for label, (_, clicks) in TABLE_3.items()},
            "The full model, with one idea removed or replaced in each row. All rows are trained "
            "alike, with the budget named at the end of the page; the paper's are trained for "
            "longer, so that differences count here, not values.",
        ),
        (
            "Another architecture for f (Table 4)",
            TABLE_4,
            TABLE_4_PAPER,
            "The context aggregation network keeps full resolution; the U-net goes down and up.",
        ),
    ):
        table = _experiment_table(results, titles, reported)
        if table is not None:
            blocks.append(Block(title=title, paragraphs=(text,), table=table))
    lines = _m_series(results)
    if lines:
        blocks.append(
            Block(
                title="How many proposals (Figure 5)",
                paragraphs=(
                    "Clicks needed by models that differ in M, the number of masks that f "
                    "proposes; in the paper more than six bring no more.",
                ),
                pictures=(
                    Picture(
                        name="clicks-against-m",
                        caption="Clicks against M, with 95 % intervals.",
                        png=draw_series(lines, xlabel="M", ylabel="clicks, fewer is better"),
                    ),
                ),
            )
        )
    return blocks


def _experiment_table(
    results: Sequence[Result], titles: Mapping[str, str], reported: Mapping[str, str]
) -> Table | None:
    """Rows are methods, columns data sets, protocols and targets; None for less than two rows."""
    columns = [
        (protocol, {s.method: s for s in compare(group, list(titles))})
        for (protocol, _), group in _groups(results).items()
    ]
    columns = [(protocol, own) for protocol, own in columns if len(own) > 1]
    present = [label for label in titles if any(label in own for _, own in columns)]
    if len(present) < 2:
        return None
    header = [""]
    for protocol, own in columns:
        some = next(iter(own.values()))
        header += [f"{some.data_set} {p}% ({_size(some)}, {protocol})" for p in (85, 90)]
    rows = []
    for label in present:
        cells = [Cell(text=titles[label], notes=(reported[label],))]
        for _, own in columns:
            for iou in (0.85, 0.90):
                lowest = min(s.at(iou).clicks.mean for s in own.values())
                cells.append(
                    _interval_cell(own[label].at(iou).clicks, lowest=lowest)
                    if label in own
                    else Cell(text="-")
                )
        rows.append(tuple(cells))
    return Table(header=tuple(header), rows=tuple(rows))


def _m_series(results: Sequence[Result]) -> list[Series]:
    lines = []
    for number, ((protocol, data_set), group) in enumerate(_groups(results).items()):
        summaries = compare(group, list(FIGURE_5))
        if len(summaries) < 2:
            continue
        for iou in (0.85, 0.90):
            points: list[tuple[int, Interval]] = sorted(
                ((FIGURE_5[s.method], s.at(iou).clicks) for s in summaries),
                key=lambda point: point[0],
            )
            lines.append(
                Series(
                    name=f"{data_set} {100 * iou:.0f}%, {protocol}",
                    colour=_SERIES_COLOURS[number % len(_SERIES_COLOURS)],
                    dashed=iou > 0.85,
                    points=tuple(points),
                )
            )
    return lines


def _gallery_blocks(contents: Contents, *, photographs: bool) -> list[Block]:
    gallery = Gallery(contents, photographs=photographs)
    main = gallery.main_method()
    if main is None:
        return []
    title = title_of(main)
    labels = _ordered(result.key.method for result in contents.latest())
    candidates = (
        Block(
            title="What one click can mean",
            name="proposals-for-one-click",
            paragraphs=(
                f"All proposals of {title} for one click, best first by its own score; the framed "
                "one is what the annotator sees. The objects are taken evenly from the data sets, "
                "not chosen for their beauty.",
            ),
            rows=tuple(gallery.proposals(main)),
        ),
        Block(
            title="Side by side",
            name="side-by-side",
            paragraphs=("One click on the object and one beside it, the same for every method.",),
            rows=tuple(gallery.comparison(compared_methods(labels))),
        ),
        Block(
            title="Worst objects",
            name="worst",
            paragraphs=(f"Where {title} needed most clicks. Blue is the mask that was wanted.",),
            rows=tuple(gallery.worst(main)),
        ),
        Block(
            title="Slowest images",
            name="slowest",
            paragraphs=(f"Where the first mask of {title} took longest.",),
            rows=tuple(gallery.slowest(main)),
        ),
    )
    blocks = [block for block in candidates if block.rows]
    if gallery.missing:
        blocks.append(
            Block(title="Pictures that are missing", points=tuple(dict.fromkeys(gallery.missing)))
        )
    return blocks


def _how(contents: Contents, results: Sequence[Result]) -> Block:
    """What was run, for somebody who wants to run it again."""
    measured = {result.key.method for result in results}
    rows = tuple(
        (
            Cell(text=title_of(entry.label), notes=(entry.label,)),
            Cell(text=entry.version),
            Cell(text=entry.about),
            Cell(text=entry.machine),
        )
        for entry in contents.methods
        if entry.label in measured
    )
    sets = ", ".join(f"{entry.name} ({entry.images} images)" for entry in contents.data_sets)
    return Block(
        title="How it was measured",
        paragraphs=(
            "A program plays the annotator. It knows the wanted mask, clicks, looks at the answer, "
            "and clicks again where the answer is wrong: on what is missing with a positive "
            "click, on what is too much with a negative one. In the paper's protocol places are "
            "drawn at random, likelier far from the region's boundary (Eq. 8), with several "
            "seeds; in the other one the click goes to the middle of the largest error. Pixels "
            "that a data set marks as undecided count neither way. Overlap is intersection over "
            "union (IoU, the Jaccard index). Systems that need both signs get one click of each "
            f"before their first mask, and both count. After {MAX_CLICKS} clicks, or as soon as "
            f"the mask is as good as asked for, the program stops; a target that is never reached "
            f"counts {MAX_CLICKS}. Methods in one table are compared on the objects that all of "
            "them did.",
            f"Data sets: {sets}.",
        ),
        table=Table(header=("method", "version", "training or parameters", "machine"), rows=rows),
    )


def _left_out(contents: Contents) -> list[Block]:
    if not contents.problems:
        return []
    defects = sum(problem.defect for problem in contents.problems)
    return [
        Block(
            title="Left out",
            paragraphs=(
                f"{len(contents.problems)} records or runs could not be measured; {defects} of "
                "them by a defect of a method.",
            ),
            points=tuple(
                f"{p.data_set} {p.object or p.image}{f', {p.run}' if p.run else ''}: {p.reason}"
                for p in contents.problems
            ),
        )
    ]


@dataclass(frozen=True, kw_only=True)
class Headline:
    """A number at the top of the page.

    Parameters
    ----------
    number
        The number.
    text
        What it is.
    colour
        Of the method.
    """

    number: str
    text: str
    colour: str


def _headline(results: Sequence[Result]) -> list[Headline]:
    """Fewest clicks on each data set."""
    tiles = []
    labels = _ordered(result.key.method for result in results)
    for (protocol, data_set), group in _groups(results).items():
        summaries = compare(group, labels)
        if not summaries:
            continue
        best = min(summaries, key=lambda s: s.at(0.85).clicks.mean)
        clicks = best.at(0.85).clicks.mean
        if math.isnan(clicks):
            continue
        tiles.append(
            Headline(
                number=f"{clicks:.2f}",
                text=f"clicks to 85 % IoU on {data_set} (protocol {protocol}): "
                f"{title_of(best.method)}, the fewest of {len(summaries)} "
                f"method{'s' if len(summaries) > 1 else ''}",
                colour=look_of(best.method).colour,
            )
        )
    return tiles
