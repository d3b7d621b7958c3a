"""Before and after: clicks on images that nobody annotated, as a table and a picture."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from lidiv_backend.clicks import Click
from lidiv_backend.drawing import contact_sheet, overlay
from lidiv_backend.errors import DataError
from lidiv_backend.evaluation.protocols import Method, intersection_over_union
from lidiv_backend.learning.files import read_json, write_json
from lidiv_backend.learning.gate import TARGET, Comparison, compare
from lidiv_backend.records import AnnotatedImage, ImageSet, ObjectMask
from lidiv_backend.simulate_lab.day import Day
from lidiv_backend.simulate_lab.timing import WEBHOOK_SECONDS, Timing
from lidiv_backend.training.simulation import centre_click

#: Clicks after which the picture compares masks.
_SHOWN_CLICKS = 2
_SHOWN_OBJECTS = 6
_TRUTH, _BEFORE, _AFTER = (90, 160, 255), (255, 120, 80), (90, 220, 120)


class _Shown:
    """A data set that shows how far its reading is; an `ImageSet`."""

    def __init__(self, base: ImageSet, bar: tqdm[Any]) -> None:
        self.name = base.name
        self._base = base
        self._bar = bar

    def __len__(self) -> int:
        return len(self._base)

    def __getitem__(self, index: int) -> AnnotatedImage:
        self._bar.update()
        return self._base[index]


def measured(
    path: Path, after: Method, before: Method, images: ImageSet, *, objects: int
) -> Comparison:
    """Count clicks with both models, or read what was counted.

    Parameters
    ----------
    path
        Keeps the result.
    after, before
        The models.
    images
        On what.
    objects
        Of an image at most so many.

    Raises
    ------
    DataError
        If there is no object to measure.
    """
    if path.exists():
        return Comparison.from_json(read_json(path))
    with tqdm(total=2 * len(images), desc=images.name, unit="image") as bar:
        found = compare(after, before, _Shown(images, bar), images=len(images), objects=objects)
    if found is None:
        raise DataError(f"{images.name} has no object to measure.")
    write_json(path, asdict(found))
    return found


def table(day: Day, comparisons: Sequence[Comparison]) -> str:
    """Write the outcome as Markdown.

    Parameters
    ----------
    day
        How the day went.
    comparisons
        What was measured; none where nothing was.
    """
    lines = [
        f"{day.images} images with {day.objects} objects were annotated by {day.clicks} clicks; "
        f"{100 * day.accepted:.0f} % of the masks were accepted as they were, the others corrected "
        f"with the brush. Run {day.run} was set off by {day.cause}.",
        "",
        f"> {day.message}",
        "",
    ]
    if comparisons:
        lines += [
            f"| images | objects | clicks to {100 * TARGET:.0f} % before | after | difference "
            "(95 % interval) | change |",
            "| --- | ---: | ---: | ---: | ---: | ---: |",
            *(
                f"| {each.data_set} ({each.images}) | {each.objects} | {each.in_use:.2f} "
                f"| {each.candidate:.2f} | {each.difference.mean:+.2f} "
                f"({each.difference.low:+.2f} to {each.difference.high:+.2f}) "
                f"| {100 * (each.candidate / each.in_use - 1):+.0f} % |"
                for each in comparisons
            ),
            "",
        ]
    lines += ["| part of the run | seconds | CPU seconds |", "| --- | ---: | ---: |"]
    lines += [
        f"| {part} | {day.parts[part]:.0f} | {day.parts.get(f'{part} CPU', 0):.0f} |"
        for part in day.parts
        if not part.endswith(" CPU")
    ]
    lines.append(f"| trigger to verdict | {day.seconds:.0f} | |")
    return "\n".join([*lines, *_timed(day.timing)])


def _timed(timing: Timing) -> list[str]:
    lines = []
    if timing.rise is not None:
        before, training = (
            1000 * statistics.median(times) for times in (timing.before, timing.training)
        )
        lines += [
            "",
            f"A click on an open image took {before:.0f} ms through Label Studio while nothing was "
            f"trained, and {training:.0f} ms while the model was (medians of {len(timing.before)} "
            f"and {len(timing.training)} clicks; {100 * timing.rise:+.0f} %).",
        ]
    if timing.webhooks:
        lines += [
            "",
            f"Of {timing.webhooks} webhooks, {timing.prompt} were answered within "
            f"{1000 * WEBHOOK_SECONDS:.0f} ms.",
        ]
    return lines


def draw(images: ImageSet, before: Method, after: Method, path: Path) -> None:
    """Draw objects, and the masks of both models after as many clicks, without the photographs.

    Parameters
    ----------
    images
        Their first objects are drawn.
    before, after
        The models.
    path
        A PNG.
    """
    tiles: list[tuple[str, NDArray[np.uint8]]] = []
    for index in range(min(len(images), _SHOWN_OBJECTS)):
        image = images[index]
        if not image.objects:
            continue
        item = image.objects[0]
        box = _around(item.mask)
        tiles.append(("object", _crop(item.mask, (), _TRUTH, box)))
        for name, method, colour in (("before", before, _BEFORE), ("after", after, _AFTER)):
            mask, clicks = _after_clicks(method, image.rgb, item)
            iou = intersection_over_union(mask, item.mask, item.ignore)
            caption = f"{name}: IoU {iou:.2f}, {len(clicks)} click" + "s" * (len(clicks) > 1)
            tiles.append((caption, _crop(mask, clicks, colour, box)))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet = contact_sheet(tiles, columns=6, longest_side=220)
    if not cv2.imwrite(str(path), sheet[..., ::-1]):
        raise DataError(f"{path} cannot be written.")


def _after_clicks(
    method: Method, rgb: NDArray[np.uint8], item: ObjectMask
) -> tuple[NDArray[np.bool_], list[Click]]:
    embedding = method.embed(rgb)
    shown = np.zeros_like(item.mask)
    clicks: list[Click] = []
    while len(clicks) < _SHOWN_CLICKS:
        click = centre_click(item.mask, shown, clicks, item.ignore)
        if click is None:
            break
        previous = shown if clicks else None
        clicks.append(click)
        shown = method.predict(embedding, clicks, previous=previous)[0].mask
    return shown, clicks


def _around(mask: NDArray[np.bool_]) -> tuple[slice, slice]:
    """A square around an object, half as large again, within the image."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    half = int(1.5 * max(rows[-1] - rows[0], columns[-1] - columns[0]) / 2) + 6
    parts = []
    for places, length in ((rows, mask.shape[0]), (columns, mask.shape[1])):
        middle = int(places[0] + places[-1]) // 2
        first = max(0, min(middle - half, length - 2 * half))
        parts.append(slice(first, min(length, first + 2 * half)))
    return parts[0], parts[1]


def _crop(
    mask: NDArray[np.bool_],
    clicks: Sequence[Click],
    colour: tuple[int, int, int],
    box: tuple[slice, slice],
) -> NDArray[np.uint8]:
    part = mask[box].astype(np.uint8)
    factor = max(1, 220 // max(part.shape))
    large = cv2.resize(part, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST)
    moved = [
        Click(
            x=(click.x - box[1].start + 0.5) * factor - 0.5,
            y=(click.y - box[0].start + 0.5) * factor - 0.5,
            positive=click.positive,
        )
        for click in clicks
    ]
    inside = [
        click for click in moved if 0 <= click.x < large.shape[1] and 0 <= click.y < large.shape[0]
    ]
    canvas = np.full((*large.shape, 3), 24, dtype=np.uint8)
    return overlay(canvas, large.astype(bool), inside, colour=colour)
