"""Results to typed clicks, and saved regions to masks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lidiv_backend.clicks import Click
from lidiv_backend.errors import BadClickError, BadRequestError
from lidiv_backend.labelstudio.boxes import BadBoxError, Box
from lidiv_backend.labelstudio.config import LabelConfig, Target
from lidiv_backend.labelstudio.requests import Result, Task, parse
from lidiv_backend.labelstudio.rle import BadRegionError, decode_mask

_KEYPOINT_TYPES = ("keypoint", "keypointlabels")
_RECTANGLE_TYPES = ("rectangle", "rectanglelabels")
_BRUSH_TYPES = ("brush", "brushlabels")
# Percentages are sums of floating-point steps in the browser.
_TOLERANCE = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class PlacedClick:
    """A click as Label Studio has it.

    Parameters
    ----------
    id
        Label Studio's id of the point.
    x, y
        Per cent of the upright image's width and height.
    positive
        False for Alt+click.
    """

    id: str
    x: float
    y: float
    positive: bool

    def in_pixels(self, *, height: int, width: int) -> Click:
        """Give the click in pixels, see `lidiv_backend.clicks`; the edges count as inside."""
        return Click(
            x=min(max(self.x / 100 * width - 0.5, 0.0), width - 1.0),
            y=min(max(self.y / 100 * height - 0.5, 0.0), height - 1.0),
            positive=self.positive,
        )

    @classmethod
    def of_pixels(cls, click: Click, *, height: int, width: int) -> PlacedClick:
        """Place a click that Label Studio knows nothing of: its id is empty."""
        return cls(
            id="",
            x=(click.x + 0.5) / width * 100,
            y=(click.y + 0.5) / height * 100,
            positive=click.positive,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class PlacedBox:
    """A rectangle as Label Studio has it.

    Parameters
    ----------
    id
        Label Studio's id of the rectangle.
    x, y
        Its top left corner, per cent of the upright image's width and height; inside the image.
    width, height
        Its sides, per cent likewise; positive.
    rotation
        Degrees, clockwise, about that corner.
    """

    id: str
    x: float
    y: float
    width: float
    height: float
    rotation: float = 0.0

    def in_pixels(self, *, height: int, width: int) -> Box:
        """Give the rectangle in pixels."""
        return Box(
            x=self.x / 100 * width - 0.5,
            y=self.y / 100 * height - 0.5,
            width=self.width / 100 * width,
            height=self.height / 100 * height,
            degrees=self.rotation,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """The clicks on one object, or the rectangle around it.

    Parameters
    ----------
    target
        Where the mask goes.
    clicks
        In the order in which they were made; at least one unless there is a rectangle.
    size
        Height and width of the image as Label Studio shows it, or None if it did not say.
    box
        The rectangle around the object, or None.
    """

    target: Target
    clicks: tuple[PlacedClick, ...]
    size: tuple[int, int] | None
    box: PlacedBox | None = None

    @property
    def id(self) -> str:
        """Label Studio's id of the point or rectangle that it began with."""
        if self.clicks:
            return self.clicks[0].id
        return self.box.id if self.box is not None else ""


def read_prompts(results: Iterable[Result], config: LabelConfig) -> tuple[Prompt, ...]:
    """Join the results of an interactive call to the clicks on each object.

    A click with a ``Labels`` tag comes as two results with one id. Rectangles are left out: a box
    is no click.

    Parameters
    ----------
    results
        ``params.context.result``.
    config
        The project's label configuration.

    Returns
    -------
    tuple of Prompt
        One for each image tag and label; the one with the latest click last. Label Studio itself
        sends one image and one label at a time.

    Raises
    ------
    BadClickError
        If a coordinate is missing, not finite, or outside the image.
    UnknownLabelError, LabelConfigError
        If a click's label or image is not in the label configuration.
    BadRequestError
        If the annotator has turned the image.
    """
    results = tuple(results)
    labels = _labels_by_id(results)
    groups: dict[tuple[str, str | None], list[Result]] = {}
    seen: set[str] = set()
    for result in results:
        # Saved annotations of some configurations hold a brush's mask once more as a key point.
        if result.type not in _KEYPOINT_TYPES or result.value.rle is not None:
            continue
        if result.id and result.id in seen:
            continue
        seen.add(result.id)
        key = (result.to_name, labels.get(result.id) if result.id else _own_label(result))
        # Taken out and put back: the group with the latest click comes last.
        groups[key] = [*groups.pop(key, []), result]
    return tuple(
        Prompt(
            target=config.image(to_name).target(label),
            clicks=tuple(_placed(result, number) for number, result in enumerate(group, start=1)),
            size=_size(group[0]),
        )
        for (to_name, label), group in groups.items()
    )


def read_boxes(results: Iterable[Result], config: LabelConfig) -> tuple[Prompt, ...]:
    """Find the rectangles of an interactive call.

    Parameters
    ----------
    results
        ``params.context.result``.
    config
        The project's label configuration.

    Returns
    -------
    tuple of Prompt
        One without clicks for each rectangle, in their order.

    Raises
    ------
    BadBoxError
        If a rectangle has no area, or lies outside the image.
    LidivError
        As `read_prompts`.
    """
    results = tuple(results)
    labels = _labels_by_id(results)
    boxes: dict[str, Prompt] = {}
    for number, result in enumerate(results, start=1):
        if result.type not in _RECTANGLE_TYPES:
            continue
        label = labels.get(result.id) if result.id else _own_label(result)
        boxes[result.id or f"number {number}"] = Prompt(
            target=config.image(result.to_name).target(label),
            clicks=(),
            size=_size(result),
            box=_placed_box(result),
        )
    return tuple(boxes.values())


def find_saved_region(
    task: Task,
    prompt: Prompt,
    *,
    height: int,
    width: int,
    id: str | None = None,
    limit: int = 100,
) -> SavedRegion | None:
    """Find the accepted region that a prompt's first click lies in, or the one with an id.

    Parameters
    ----------
    task
        The task, with its drafts and annotations.
    prompt
        At least one click; the region has its image tag and its label.
    height, width
        Of the image, in pixels; regions of another size are left out.
    id
        Of the region that is meant, whatever was clicked.
    limit
        At most so many regions are looked at, the topmost first: each is decoded.

    Returns
    -------
    SavedRegion or None
        The topmost one: drafts before annotations, the latest first.
    """
    click = prompt.clicks[0].in_pixels(height=height, width=width)
    row, column = round(click.y), round(click.x)
    for source in (task.drafts, task.annotations):
        for item in reversed(source if isinstance(source, list) else []):
            results = _tolerant(item.get("result") if isinstance(item, Mapping) else None)
            labels = _labels_by_id(results)
            for result in reversed(results):
                fits = (
                    result.type in _BRUSH_TYPES
                    and result.to_name == prompt.target.to_name
                    and labels.get(result.id) == prompt.target.label
                    and (result.original_height, result.original_width) == (height, width)
                    and (id is None or result.id == id)
                )
                if not fits:
                    continue
                limit -= 1
                if limit < 0:
                    return None
                try:
                    # The image was read, so that a mask of its size is none too large.
                    mask = decode_mask(
                        result.value.rle, height=height, width=width, max_pixels=height * width
                    )
                except BadRegionError:
                    continue
                if id is not None or mask[row, column]:
                    label = prompt.target.label
                    return SavedRegion(
                        id=result.id,
                        to_name=result.to_name,
                        labels=() if label is None else (label,),
                        mask=mask,
                    )
    return None


def saved_region_ids(task: Task) -> frozenset[str]:
    """Give the ids of all regions that a task's drafts and annotations hold."""
    return frozenset(
        result.id
        for source in (task.drafts, task.annotations)
        for item in (source if isinstance(source, list) else [])
        for result in _tolerant(item.get("result") if isinstance(item, Mapping) else None)
    )


def read_task_prompts(task: Task, config: LabelConfig) -> tuple[Prompt, ...]:
    """Find the key points that a task brings along in a batch call.

    Parameters
    ----------
    task
        The task, with its drafts, annotations and predictions.
    config
        The project's label configuration; only its smart key points count as clicks.

    Returns
    -------
    tuple of Prompt
        Those of the first source that has any, newest first; drafts, then annotations, then
        predictions. Empty if there are none.

    Raises
    ------
    LidivError
        As `read_prompts`, where the key points themselves are unusable.
    """
    smart = {name for image in config.images for name in image.smart_keypoints}
    for source in (task.drafts, task.annotations, task.predictions):
        for item in reversed(source if isinstance(source, list) else []):
            found = _tolerant(item.get("result") if isinstance(item, Mapping) else None)
            clicks = [
                result
                for result in found
                if result.type == "labels"
                or (result.type in _KEYPOINT_TYPES and result.from_name in smart)
            ]
            prompts = read_prompts(clicks, config)
            if prompts:
                return prompts
    return ()


@dataclass(frozen=True, kw_only=True)
class SavedRegion:
    """A mask of a saved annotation.

    Parameters
    ----------
    id
        The region's id; that of the answer which was accepted, if it came from this backend.
    to_name
        The image tag.
    labels
        Its labels, possibly none.
    mask
        bool (H, W).
    """

    id: str
    to_name: str
    labels: tuple[str, ...]
    mask: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class SavedRegions:
    """The masks of a saved annotation, and what had to be left out.

    Parameters
    ----------
    regions
        Readable brush regions, each once.
    skipped
        A sentence for each region that could not be read.
    """

    regions: tuple[SavedRegion, ...]
    skipped: tuple[str, ...]


def read_saved_regions(results: object) -> SavedRegions:
    """Read the brush regions of a saved annotation.

    Parameters
    ----------
    results
        ``annotation.result`` as Label Studio gives it.

    Returns
    -------
    SavedRegions
        Never an error: what cannot be read is skipped with its reason.
    """
    skipped: list[str] = []
    parsed = _tolerant(results, skipped)
    labels: dict[str, tuple[str, ...]] = {}
    for result in parsed:
        value = result.value
        if result.type in ("labels", "brushlabels") and result.id not in labels:
            labels[result.id] = value.labels if result.type == "labels" else value.brushlabels
    regions: dict[str, SavedRegion] = {}
    for number, result in enumerate(parsed, start=1):
        # The rle of a key point or a label repeats that of the brush with the same id.
        if result.type not in _BRUSH_TYPES:
            continue
        name = result.id or f"number {number}"
        if name in regions:
            skipped.append(f"Region {name}: its id is taken by an earlier one.")
            continue
        height, width = result.original_height or 0, result.original_width or 0
        if height <= 0 or width <= 0:
            skipped.append(f"Region {name}: it does not say how large its image is.")
            continue
        try:
            mask = decode_mask(result.value.rle, height=height, width=width)
        except BadRegionError as error:
            skipped.append(f"Region {name}: {error.message}")
            continue
        regions[name] = SavedRegion(
            id=result.id, to_name=result.to_name, labels=labels.get(result.id, ()), mask=mask
        )
    return SavedRegions(regions=tuple(regions.values()), skipped=tuple(skipped))


def _tolerant(results: object, skipped: list[str] | None = None) -> list[Result]:
    """Parse results one by one; what cannot be parsed is left out."""
    parsed = []
    for number, result in enumerate(results if isinstance(results, Sequence) else (), start=1):
        try:
            parsed.append(parse(Result, result))
        except BadRequestError as error:
            if skipped is not None:
                skipped.append(f"Result {number}: {error.message}")
    return parsed


def _labels_by_id(results: Iterable[Result]) -> dict[str, str]:
    """The first label of each region; with a ``Labels`` tag another result with its id has it."""
    labels: dict[str, str] = {}
    for result in results:
        label = _own_label(result)
        if label is not None:
            labels.setdefault(result.id, label)
    return labels


def _own_label(result: Result) -> str | None:
    value = result.value
    all_labels = (
        *value.keypointlabels,
        *value.rectanglelabels,
        *value.brushlabels,
        *value.labels,
    )
    return next(iter(all_labels), None)


def _size(result: Result) -> tuple[int, int] | None:
    if result.original_height and result.original_width:
        return result.original_height, result.original_width
    return None


def _placed(result: Result, number: int) -> PlacedClick:
    x, y = result.value.x, result.value.y
    if x is None or y is None or not (math.isfinite(x) and math.isfinite(y)):
        raise BadClickError(
            f"Click {number} has coordinates ({x}, {y}), which are not numbers.",
            remedy="Undo the last point and click again.",
        )
    low, high = -_TOLERANCE, 100 + _TOLERANCE
    if not (low <= x <= high and low <= y <= high):
        raise BadClickError(
            f"Click {number} at ({x:g} %, {y:g} %) is outside the image.",
            remedy="Click inside the image.",
        )
    _require_upright(result)
    return PlacedClick(id=result.id, x=x, y=y, positive=result.is_positive)


def _placed_box(result: Result) -> PlacedBox:
    value = result.value
    numbers = (value.x, value.y, value.width, value.height, value.rotation or 0.0)
    x, y, width, height, rotation = (math.nan if each is None else each for each in numbers)
    if not all(map(math.isfinite, (x, y, width, height, rotation))):
        raise BadBoxError(
            "The rectangle's position and size are not all numbers.",
            remedy="Delete the rectangle and draw it again.",
        )
    low, high = -_TOLERANCE, 100 + _TOLERANCE
    if not (low <= x <= high and low <= y <= high and 0 < width <= high and 0 < height <= high):
        raise BadBoxError(
            f"The rectangle at ({x:g} %, {y:g} %) of {width:g} % x {height:g} % has no area, or "
            "lies outside the image.",
            remedy="Delete the rectangle and draw it inside the image.",
        )
    _require_upright(result)
    return PlacedBox(id=result.id, x=x, y=y, width=width, height=height, rotation=rotation)


def _require_upright(result: Result) -> None:
    if result.image_rotation % 360 != 0:
        raise BadRequestError(
            f"The image is turned by {result.image_rotation:g} degrees in Label Studio.",
            remedy="Turn it back before clicking; masks are made for the upright image.",
        )
