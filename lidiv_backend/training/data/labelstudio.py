"""An export of a Label Studio project: brush masks, as JSON or JSON-MIN.

What annotators save is not always tidy: a brush and its label can be two results with one id, and
a brush region made by a smart key point is saved a second time as a key point that holds the same
mask. Each mask is taken once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from lidiv_backend.errors import BadImageError, DataError, LidivError
from lidiv_backend.images import MAX_PIXELS, read_rgb
from lidiv_backend.records import AnnotatedImage, ImageSet, ObjectMask
from lidiv_backend.training.data.assembly import assemble
from lidiv_backend.training.data.spec import ImageSetSpec, register_image_set, take_part

# JSON-MIN drops the type of a result; what it is shows by where its labels are.
_TYPES = ("brushlabels", "labels", "keypointlabels", "rectanglelabels", "ellipselabels")
# A brush first, then the label of a brush; nothing else is drawn by an annotator as a mask.
_RANKS = {"brushlabels": 0, "brush": 0, "labels": 1}


@dataclass(frozen=True, slots=True)
class _Region:
    name: str
    label: str
    rle: bytes
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class _Task:
    name: str
    reference: str
    regions: tuple[_Region, ...]
    problems: tuple[str, ...]


class LabelStudioSet:
    """Brush masks of an exported Label Studio project.

    Tasks without an annotation, skipped ones, drafts and predictions are left out. Where several
    people annotated a task, all of their masks are objects of its image.

    Parameters
    ----------
    export
        The export, JSON or JSON-MIN.
    images
        Folder of the images. A task's image is looked for by as much of its path as is found
        there, and for uploads also without the eight characters that Label Studio puts in front.
    split
        See `hash_split`; None for all of it.

    Raises
    ------
    DataError
        If the file is no such export, or the decoder of Label Studio's masks is missing.
    """

    def __init__(self, export: str | Path, images: str | Path, *, split: str | None = None) -> None:
        self.folder = Path(images)
        self.name = Path(export).stem
        if not self.folder.is_dir():
            raise DataError(f"The folder {self.folder} does not exist.", remedy="Check the path.")
        _decoder()
        self._tasks = tuple(
            take_part(
                _read_export(Path(export)), split, name=lambda task: task.name, what=str(export)
            )
        )

    def __len__(self) -> int:
        return len(self._tasks)

    def __getitem__(self, index: int) -> AnnotatedImage:
        task = self._tasks[index]
        path = _locate(self.folder, task.reference)
        if path is None:
            raise DataError(
                f"The image {task.reference!r} of {task.name} is not in {self.folder}.",
                remedy="Copy the project's images there, with the names that Label Studio shows.",
            )
        try:
            rgb = read_rgb(path)
        except BadImageError as error:
            raise DataError(error.message, remedy=error.remedy) from error
        decode_mask = _decoder()
        objects, problems = [], list(task.problems)
        for region in task.regions:
            try:
                mask = decode_mask(region.rle, height=region.height, width=region.width)
            except LidivError as error:
                problems.append(f"{region.name}: {error.message}")
                continue
            objects.append(ObjectMask(name=region.name, mask=mask, label=region.label))
        return assemble(task.name, rgb, objects, problems)


def _decoder() -> Any:
    """Label Studio's decoder of masks, which is needed for this reader only."""
    try:
        from lidiv_backend.labelstudio.rle import decode_mask
    except ImportError as error:
        raise DataError(
            "Exports of Label Studio need label-studio-sdk, which is not installed.",
            remedy="Run: pip install label-studio-sdk",
        ) from error
    return decode_mask


def _read_export(path: Path) -> list[_Task]:
    """Read the annotated tasks, in the order of the file."""
    try:
        with path.open(encoding="utf-8") as file:
            items = json.load(file)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read as an export of Label Studio: {error}.",
            remedy="Export the project as JSON or JSON-MIN.",
        ) from error
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise DataError(
            f"{path} is no list of tasks.", remedy="Export the project as JSON or JSON-MIN."
        )
    tasks: dict[str, _Task] = {}
    for number, item in enumerate(items, start=1):
        name = f"task {item.get('id', number)}"
        task = _parse_task(name, item) if "data" in item else _parse_minimal(name, item)
        if task is None:
            continue
        # JSON-MIN has an item for each annotation of a task.
        before = tasks.get(name)
        if before is not None:
            task = _Task(
                name,
                before.reference,
                before.regions + task.regions,
                before.problems + task.problems,
            )
        tasks[name] = task
    if not tasks:
        raise DataError(
            f"{path} has no task with an annotation.",
            remedy="Annotate some tasks, and export the project as JSON or JSON-MIN.",
        )
    return list(tasks.values())


def _parse_task(name: str, item: dict[str, Any]) -> _Task | None:
    """Read a task of a JSON export; None where nobody annotated it."""
    regions: list[_Region] = []
    problems: list[str] = []
    annotated = False
    for annotation in _dictionaries(item.get("annotations")):
        results = list(_dictionaries(annotation.get("result")))
        if annotation.get("was_cancelled") or not results:
            continue
        annotated = True
        _take_regions(f"{name}, annotation {annotation.get('id')}", results, regions, problems)
    data = item["data"] if isinstance(item["data"], dict) else {}
    return _Task(name, _reference(data), tuple(regions), tuple(problems)) if annotated else None


def _parse_minimal(name: str, item: dict[str, Any]) -> _Task | None:
    """Read an item of a JSON-MIN export; None where it has no region."""
    results = []
    for value in item.values():
        # Here a result is its own value, its size beside its labels.
        for flat in _dictionaries(value if isinstance(value, list) else None):
            kind = next((kind for kind in _TYPES if kind in flat), "brush")
            results.append({**flat, "type": kind, "value": flat})
    if not results:
        return None
    regions: list[_Region] = []
    problems: list[str] = []
    _take_regions(f"{name}, annotation {item.get('annotation_id')}", results, regions, problems)
    return _Task(name, _reference(item), tuple(regions), tuple(problems))


def _take_regions(
    prefix: str, results: list[dict[str, Any]], regions: list[_Region], problems: list[str]
) -> None:
    """Add the masks of one annotation, each once, to `regions`, what is wrong to `problems`."""
    seen: set[Any] = set()
    masks = [item for item in results if _value(item).get("format") == "rle"]
    if not masks:
        problems.append(f"{prefix}: no brush mask")
    ranked = sorted(
        enumerate(masks, start=1), key=lambda pair: _RANKS.get(str(pair[1].get("type")), 2)
    )
    # What a brush's id or its very mask is seen with again is its label or its key point.
    for number, result in ranked:
        value = _value(result)
        identity = result.get("id")
        name = f"{prefix}, region {identity if identity is not None else number}"
        label = next(iter(_labels(value)), "")
        try:
            rle = bytes(value["rle"])
            height, width = _size(result)
        except (KeyError, TypeError, ValueError) as error:
            problems.append(f"{name}: {error}")
            continue
        if seen & {("id", identity), ("rle", rle)}:
            _add_label(regions, name, rle, label)
            continue
        if str(result.get("type")) not in _RANKS:
            problems.append(f"{name}: a mask without a brush")
            continue
        seen |= {("rle", rle)} | ({("id", identity)} if identity is not None else set())
        regions.append(_Region(name, label, rle, height, width))


def _add_label(regions: list[_Region], name: str, rle: bytes, label: str) -> None:
    """Give a brush without a label the label that came as a result of its own."""
    for index, region in enumerate(regions):
        if not region.label and (region.name == name or region.rle == rle):
            regions[index] = _Region(region.name, label, region.rle, region.height, region.width)


def _size(result: dict[str, Any]) -> tuple[int, int]:
    """Height and width of the image that a region was drawn on."""
    height, width = result["original_height"], result["original_width"]
    if not (isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0):
        raise ValueError(f"the image is said to have {width} x {height} pixels")
    if height * width > MAX_PIXELS:
        raise ValueError(f"the image is said to have {width} x {height} pixels, which is too many")
    if result.get("image_rotation"):
        raise ValueError("it was drawn on a rotated view of the image")
    return height, width


def _labels(value: dict[str, Any]) -> Iterable[str]:
    for key in ("brushlabels", "labels"):
        if isinstance(value.get(key), list):
            yield from (str(label) for label in value[key])


def _value(result: dict[str, Any]) -> dict[str, Any]:
    value = result.get("value")
    return value if isinstance(value, dict) else {}


def _dictionaries(value: Any) -> Iterable[dict[str, Any]]:
    return (item for item in value if isinstance(item, dict)) if isinstance(value, list) else ()


def _reference(data: dict[str, Any]) -> str:
    """Address of a task's image: the field ``image``, or the first that looks like one."""
    texts = [value for value in (data.get("image"), *data.values()) if isinstance(value, str)]
    looks = re.compile(r"\.(png|jpe?g|bmp|tiff?|webp|gif|avif)\b", re.IGNORECASE)
    return next((text for text in texts if looks.search(text)), texts[0] if texts else "")


def _locate(folder: Path, reference: str) -> Path | None:
    """Find a task's image below a folder, by the longest end of its path that is there."""
    address = urlsplit(reference)
    # Local files are named in the query: /data/local-files/?d=folder/name.jpg
    local = parse_qs(address.query).get("d")
    path = local[0] if local else unquote(address.path)
    parts = [part for part in PurePosixPath(path).parts if part not in ("/", ".", "..")]
    for start in range(len(parts)):
        candidate = folder.joinpath(*parts[start:])
        if candidate.is_file():
            return candidate
    uploaded = re.fullmatch(r"[0-9a-f]{8}-(.+)", parts[-1]) if parts else None
    candidate = folder / uploaded[1] if uploaded else folder
    return candidate if candidate.is_file() else None


def _open(spec: ImageSetSpec) -> ImageSet:
    spec.require(paths=2)
    return LabelStudioSet(spec.paths[0], spec.paths[1], split=spec.split)


register_image_set("labelstudio", _open, usage="labelstudio:/export.json,/images")
