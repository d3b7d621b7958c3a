"""Pictures for the report: proposals for one click, methods side by side, worst and slowest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lidiv_backend.clicks import Click
from lidiv_backend.drawing import Rgb, contact_sheet, overlay
from lidiv_backend.errors import DataError, LidivError
from lidiv_backend.evaluation.datasets import open_data_set
from lidiv_backend.evaluation.measures import number_of_clicks
from lidiv_backend.evaluation.methods import MethodSpec, load_method, version_of
from lidiv_backend.evaluation.protocols import (
    ClickProtocol,
    Method,
    intersection_over_union,
    opening_clicks,
)
from lidiv_backend.evaluation.reference import TABLE_2, look_of
from lidiv_backend.evaluation.results import Contents, Result
from lidiv_backend.predictor import Proposal
from lidiv_backend.records import AnnotatedImage, ImageSet, ObjectMask, choose_images

_TRUTH_COLOUR = (40, 120, 255)
_LONGEST_SIDE = 300
_SHEET_SIDE = 220
# So many times the object's own height and width are drawn.
_SURROUNDINGS = 3.0
# Grey of the paper where no photograph is shown.
_BLANK = 235


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A picture with what is to be said about it.

    Parameters
    ----------
    caption
        For people.
    rgb
        uint8 (H, W, 3).
    chosen
        It is the one that the method selected.
    """

    caption: str
    rgb: Rgb
    chosen: bool = False

    def jpeg(self) -> bytes:
        """Encode it small enough for a page."""
        encoded, data = cv2.imencode(".jpg", self.rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
        if not encoded:
            raise DataError("A picture could not be encoded.")
        return data.tobytes()


@dataclass(frozen=True, kw_only=True)
class Row:
    """Pictures of one object.

    Parameters
    ----------
    title
        Which object.
    tiles
        From left to right.
    """

    title: str
    tiles: tuple[Tile, ...]


def draw_rows(rows: Sequence[Row]) -> bytes:
    """Draw rows as one sheet, a PNG."""
    columns = max(len(row.tiles) for row in rows)
    blank = np.full((8, 8, 3), 255, np.uint8)
    tiles = []
    for row in rows:
        tiles += [(tile.caption, tile.rgb) for tile in row.tiles]
        tiles += [("", blank)] * (columns - len(row.tiles))
    sheet = contact_sheet(tiles, columns=columns, longest_side=_SHEET_SIDE)
    encoded, data = cv2.imencode(".png", sheet[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])
    if not encoded:
        raise DataError("A picture could not be encoded.")
    return data.tobytes()


class Gallery:
    """Runs methods again on a few objects of an evaluation.

    Parameters
    ----------
    contents
        What was measured.
    photographs
        Draw on the images; without, on blank paper.

    Attributes
    ----------
    missing
        What could not be drawn, and why.
    """

    def __init__(self, contents: Contents, *, photographs: bool = True) -> None:
        self._contents = contents
        self._photographs = photographs
        self._results = contents.latest()
        self.missing: list[str] = []
        self._method = cache(self._load_method)
        self._image_set = cache(self._open_image_set)

    def main_method(self) -> str | None:
        """Label of the method whose pictures are most worth looking at."""
        present = list(dict.fromkeys(result.key.method for result in self._results))
        several = {
            result.key.method
            for result in self._results
            if any(step.proposals > 1 for step in result.trace.steps)
        }
        wanted = ["default", "paper", "full", *(m for m in present if m in several), *present]
        return next((label for label in wanted if label in present), None)

    def proposals(self, label: str, *, count: int = 6) -> list[Row]:
        """Draw, like Figure 2, all proposals for the first click; objects spread over the sets."""
        rows = []
        for result in self._spread(self._of(label), count):
            scene = self._scene(result)
            method = self._method(label)
            if scene is None or method is None:
                continue
            click = result.trace.clicks[:1]
            proposals = method.predict(method.embed(scene.image.rgb), click)
            tiles = [scene.tile("click", clicks=click), scene.truth()]
            tiles += [
                scene.tile(
                    f"score {proposal.score:.2f}, IoU {scene.iou(proposal.mask):.2f}",
                    mask=proposal.mask,
                    clicks=click,
                    chosen=place == 0,
                )
                for place, proposal in enumerate(proposals)
            ]
            rows.append(Row(title=scene.name, tiles=tuple(tiles)))
        return rows

    def comparison(self, labels: Sequence[str]) -> list[Row]:
        """Draw, like Figure 4, what methods make of one positive and one negative click."""
        rows = []
        for entry in self._contents.data_sets:
            candidates = [r for r in self._results if r.key.data_set == entry.name]
            for result in self._spread(candidates, 1):
                scene = self._scene(result)
                if scene is None:
                    continue
                clicks = opening_clicks(
                    scene.target,
                    protocol=ClickProtocol.CENTRE,
                    both_signs=True,
                )
                tiles = [scene.tile("clicks", clicks=clicks), scene.truth()]
                for label in labels:
                    method = self._method(label)
                    if method is None:
                        continue
                    mask = method.predict(method.embed(scene.image.rgb), clicks)[0].mask
                    tiles.append(
                        scene.tile(
                            f"{look_of(label).title}: IoU {scene.iou(mask):.2f}",
                            mask=mask,
                            clicks=clicks,
                        )
                    )
                rows.append(Row(title=scene.name, tiles=tuple(tiles)))
        return rows

    def worst(self, label: str, *, count: int = 4) -> list[Row]:
        """Draw the objects that cost most clicks, of these the least accurate first."""
        ranked = sorted(
            self._of(label),
            key=lambda r: (-number_of_clicks(r.trace, 0.85), r.trace.steps[-1].iou),
        )
        return self._finals(label, _distinct(ranked)[:count])

    def slowest(self, label: str, *, count: int = 4) -> list[Row]:
        """Draw the objects whose first mask took longest."""
        ranked = sorted(
            self._of(label), key=lambda r: -(r.trace.embed_seconds + r.trace.steps[0].seconds)
        )
        return self._finals(label, _distinct(ranked)[:count])

    def _finals(self, label: str, results: Sequence[Result]) -> list[Row]:
        rows = []
        for result in results:
            scene = self._scene(result)
            method = self._method(label)
            if scene is None or method is None:
                continue
            embedding = method.embed(scene.image.rgb)
            final = _rerun(method, embedding, result)[0].mask
            first = result.trace.steps[0]
            seconds = result.trace.embed_seconds + first.seconds
            tiles = (
                scene.truth(),
                scene.tile(
                    f"after {len(result.trace.clicks)} clicks: IoU {scene.iou(final):.2f}",
                    mask=final,
                    clicks=result.trace.clicks,
                ),
            )
            rows.append(
                Row(
                    title=f"{scene.name}: {result.width} x {result.height} pixels, first mask "
                    f"in {seconds:.2f} s, then {_median_seconds(result):.2f} s for each click",
                    tiles=tiles,
                )
            )
        return rows

    def _of(self, label: str) -> list[Result]:
        """Runs of one method; by the deterministic protocol where there is one."""
        own = [result for result in self._results if result.key.method == label]
        centre = [result for result in own if result.key.protocol == ClickProtocol.CENTRE.value]
        return centre or [result for result in own if result.key.seed == 0]

    def _spread(self, results: Sequence[Result], count: int) -> list[Result]:
        ordered = sorted(
            _distinct(results), key=lambda r: (r.key.data_set, r.key.image, r.key.object)
        )
        # Not the best ones: every n-th, so that the pictures are typical.
        return [ordered[index] for index in choose_images(len(ordered), count)]

    def _scene(self, result: Result) -> _Scene | None:
        image_set = self._image_set(result.key.data_set)
        if image_set is None:
            return None
        image = image_set[result.index]
        target = next((o for o in image.objects if o.name == result.key.object), None)
        if target is None:
            self.missing.append(f"{result.key.object}: the data set has changed")
            return None
        return _Scene(
            image=image,
            target=target,
            data_set=result.key.data_set,
            photographs=self._photographs,
        )

    def _open_image_set(self, name: str) -> ImageSet | None:
        entry = next(entry for entry in self._contents.data_sets if entry.name == name)
        try:
            data = None if entry.data is None else Path(entry.data)
            return open_data_set(entry.spec, split=entry.split, data=data)
        except LidivError as error:
            self.missing.append(f"{name}: {error}")
            return None

    def _load_method(self, label: str) -> Method | None:
        entry = next(entry for entry in self._contents.methods if entry.label == label)
        spec = MethodSpec(label=label, source=entry.source, longest_side=entry.longest_side)
        try:
            method = load_method(spec)
        except LidivError as error:
            self.missing.append(f"{label}: {error}")
            return None
        if version_of(method) != entry.version:
            self.missing.append(f"{label}: its weights are no longer those that were measured")
            return None
        return method


class _Scene:
    """One object, ready to be drawn."""

    def __init__(
        self, *, image: AnnotatedImage, target: ObjectMask, data_set: str, photographs: bool
    ) -> None:
        self.image = image
        self.target = target
        self.data_set = data_set
        self.paper = image.rgb if photographs else np.full_like(image.rgb, _BLANK)

    @property
    def name(self) -> str:
        return f"{self.data_set} {self.target.name}"

    @cached_property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns to draw: a small object with what is around it, else all."""
        found = []
        for axis, size in zip((1, 0), self.target.mask.shape, strict=True):
            places = np.flatnonzero(self.target.mask.any(axis=axis))
            first, last = int(places[0]), int(places[-1]) + 1
            half = max(_SURROUNDINGS * (last - first), size / 4) / 2
            middle = (first + last) / 2
            found.append(slice(max(0, int(middle - half)), min(size, int(middle + half) + 1)))
        return found[0], found[1]

    def iou(self, mask: NDArray[np.bool_]) -> float:
        return intersection_over_union(mask, self.target.mask, self.target.ignore)

    def truth(self) -> Tile:
        return self.tile("wanted", mask=self.target.mask, colour=_TRUTH_COLOUR)

    def tile(
        self,
        caption: str,
        *,
        mask: NDArray[np.bool_] | None = None,
        clicks: Sequence[Click] = (),
        chosen: bool = False,
        colour: tuple[int, int, int] | None = None,
    ) -> Tile:
        """Draw on the image at the size of the page, so that lines and clicks are legible."""
        rows, columns = self.window
        part = self.paper[rows, columns]
        height, width = part.shape[:2]
        factor = _LONGEST_SIDE / max(height, width)
        size = (max(1, round(width * factor)), max(1, round(height * factor)))
        small = cv2.resize(part, size, interpolation=cv2.INTER_AREA)
        small_mask = None
        if mask is not None:
            visible = mask[rows, columns].astype(np.float32)
            small_mask = np.asarray(cv2.resize(visible, size, interpolation=cv2.INTER_AREA) > 0.5)
        moved = [
            Click(
                x=(click.x - columns.start + 0.5) * factor - 0.5,
                y=(click.y - rows.start + 0.5) * factor - 0.5,
                positive=click.positive,
            )
            for click in clicks
        ]
        options: dict[str, Any] = {} if colour is None else {"colour": colour}
        rgb = overlay(small.astype(np.uint8, copy=False), small_mask, moved, **options)
        return Tile(caption=caption, rgb=rgb, chosen=chosen)


def compared_methods(labels: Sequence[str]) -> list[str]:
    """Methods for a picture like Figure 4: the most telling five of those that were measured."""
    wanted = ("graph-cut", "geodesic-star-convexity", "dos-graph-cut", "paper", "default")
    chosen = [label for label in wanted if label in labels]
    others = [label for label in labels if label not in TABLE_2]
    return (chosen + others)[:5] or list(labels)[:5]


def _distinct(results: Sequence[Result]) -> list[Result]:
    """Keep the first run of each object."""
    first: dict[tuple[str, str, str], Result] = {}
    for result in results:
        key = result.key
        first.setdefault((key.data_set, key.image, key.object), result)
    return list(first.values())


def _rerun(method: Method, embedding: Any, result: Result) -> Sequence[Proposal]:
    """Make the clicks of a run again, up to its last result."""
    previous: NDArray[np.bool_] | None = None
    proposals: Sequence[Proposal] = ()
    for step in result.trace.steps:
        proposals = method.predict(embedding, result.trace.clicks[: step.clicks], previous=previous)
        previous = proposals[0].mask
    return proposals


def _median_seconds(result: Result) -> float:
    return float(np.median([step.seconds for step in result.trace.steps]))
