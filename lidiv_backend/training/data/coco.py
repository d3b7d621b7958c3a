"""Annotations in the format of COCO and LVIS: one JSON file for a folder of images."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lidiv_backend.errors import BadImageError, DataError
from lidiv_backend.images import MAX_PIXELS, read_rgb
from lidiv_backend.records import AnnotatedImage, ImageSet, ObjectMask
from lidiv_backend.training.data.assembly import assemble
from lidiv_backend.training.data.spec import ImageSetSpec, register_image_set, take_part

# Pixels; the rasteriser allocates by coordinates.
_FARTHEST = 100_000.0


@dataclass(frozen=True, slots=True)
class _Object:
    """One annotation; its segmentation stays text, which takes a tenth of the memory."""

    identity: str
    label: str
    segmentation: str


@dataclass(frozen=True, slots=True)
class _Image:
    name: str
    files: tuple[str, ...]
    height: int
    width: int
    objects: tuple[_Object, ...]


class CocoSet:
    """Objects from COCO or LVIS annotations; crowds are left out.

    Polygons need pycocotools (``pip install lidiv-backend[readers]``), whose rasteriser defines
    what a COCO polygon covers.

    Parameters
    ----------
    images
        Folder of the images; files are looked for by their name and, as LVIS needs it, with the
        last folder of their address (``train2017/000000000009.jpg``).
    annotations
        The JSON file. Images without objects are left out.
    split
        See `hash_split`; None for all of it.

    Raises
    ------
    DataError
        If the file cannot be read or is something else, or pycocotools is needed and missing.
    """

    def __init__(
        self, images: str | Path, annotations: str | Path, *, split: str | None = None
    ) -> None:
        self.folder = Path(images)
        self.name = Path(annotations).stem
        if not self.folder.is_dir():
            raise DataError(f"The folder {self.folder} does not exist.", remedy="Check the path.")
        self._images = tuple(
            take_part(
                _read_annotations(Path(annotations)),
                split,
                name=lambda image: image.name,
                what=str(annotations),
            )
        )
        # Missed now rather than image by image.
        if any(
            item.segmentation.startswith("[") for image in self._images for item in image.objects
        ):
            _rasteriser()

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> AnnotatedImage:
        image = self._images[index]
        paths = [self.folder / file for file in image.files]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            raise DataError(
                f"The image {image.name} ({' or '.join(image.files) or 'no file name'}) is not in "
                f"{self.folder}.",
                remedy="Name the folder of the images that these annotations are made for.",
            )
        try:
            rgb = read_rgb(path)
        except BadImageError as error:
            raise DataError(error.message, remedy=error.remedy) from error
        objects, problems = [], []
        for item in image.objects:
            name = f"{image.name}:{item.identity}"
            try:
                mask = decode_segmentation(
                    json.loads(item.segmentation), height=image.height, width=image.width
                )
            except ValueError as error:
                problems.append(f"{name}: {error}")
                continue
            objects.append(ObjectMask(name=name, mask=mask, label=item.label))
        return assemble(image.name, rgb, objects, problems)


def decode_segmentation(segmentation: Any, *, height: int, width: int) -> NDArray[np.bool_]:
    """Decode a segmentation as COCO writes it.

    Parameters
    ----------
    segmentation
        A list of polygons ``[x, y, x, y, ...]``, or ``{"size": [height, width], "counts": ...}``
        with the counts as a list or as COCO's compressed text.
    height, width
        Size of the image in pixels.

    Returns
    -------
    ndarray
        bool (H, W).

    Raises
    ------
    ValueError
        If it is malformed, says why.
    DataError
        If it has polygons and pycocotools is missing.
    """
    if isinstance(segmentation, dict):
        if segmentation.get("size") != [height, width]:
            raise ValueError(
                f"the mask's size is {segmentation.get('size')}, the image's {[height, width]}"
            )
        return _decode_counts(segmentation.get("counts"), height=height, width=width)
    return _fill_polygons(segmentation, height=height, width=width)


def _decode_counts(counts: Any, *, height: int, width: int) -> NDArray[np.bool_]:
    """Decode runs of 0 and 1 in turn, down the columns."""
    # Not by pycocotools: where the runs end early it hands out uninitialised memory.
    runs = _uncompress(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(type(run) is int and run >= 0 for run in runs):
        raise ValueError("the mask's counts are no lengths")
    if sum(runs) != height * width:
        raise ValueError(f"the mask's counts cover {sum(runs)} of {height * width} pixels")
    values = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return np.ascontiguousarray(values.reshape(width, height).T)


def _uncompress(text: str) -> list[int]:
    """Read COCO's compressed counts.

    Each number is written in groups of 5 bits, lowest first, as characters from ``0``; the sixth
    bit says that more follow, and the highest bit of the last group is the sign. From the fourth
    number on, it is the difference to the number two places before.
    """
    runs: list[int] = []
    number, shift = 0, 0
    for character in text:
        group = ord(character) - 48
        if not 0 <= group < 64:
            raise ValueError(f"the mask's counts hold the character {character!r}")
        number |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:
            number -= 1 << shift
        runs.append(number + (runs[-2] if len(runs) > 2 else 0))
        number, shift = 0, 0
    if shift:
        raise ValueError("the mask's counts end in the middle of a number")
    return runs


def _fill_polygons(polygons: Any, *, height: int, width: int) -> NDArray[np.bool_]:
    """Draw polygons as COCO does."""
    if not isinstance(polygons, list) or not polygons:
        raise ValueError("the annotation has no segmentation")
    for polygon in polygons:
        try:
            corners = np.asarray(polygon, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError("a polygon is no list of numbers") from error
        if corners.ndim != 1 or len(corners) < 6 or len(corners) % 2:
            raise ValueError("a polygon needs at least three pairs of x and y")
        # Written so that what is not a number fails as well.
        if not (np.abs(corners) <= _FARTHEST).all():
            raise ValueError("a polygon has coordinates far outside the image")
    rasteriser = _rasteriser()
    drawn = rasteriser.decode(rasteriser.frPyObjects(polygons, height, width))
    covered: NDArray[np.bool_] = drawn.any(axis=2)
    return covered


def _rasteriser() -> Any:
    """COCO's own rasteriser, which is needed for polygons only."""
    try:
        from pycocotools import mask
    except ImportError as error:
        raise DataError(
            "Polygons of COCO annotations need pycocotools, which is not installed.",
            remedy="Run: pip install 'lidiv-backend[readers]'",
        ) from error
    return mask


def _read_annotations(path: Path) -> list[_Image]:
    """Images with their objects, in the order of the file."""
    try:
        with path.open(encoding="utf-8") as file:
            document = json.load(file)
        labels = {item["id"]: str(item["name"]) for item in document.get("categories", [])}
        objects: dict[Any, list[_Object]] = {}
        for item in document["annotations"]:
            if not item.get("iscrowd"):
                objects.setdefault(item["image_id"], []).append(
                    _Object(
                        str(item["id"]),
                        labels.get(item.get("category_id"), ""),
                        json.dumps(item.get("segmentation"), separators=(",", ":")),
                    )
                )
        images = []
        for item in document["images"]:
            found = objects.pop(item["id"], None)
            if found is not None:
                images.append(_parse_image(item, tuple(found)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} cannot be read as COCO or LVIS annotations: {type(error).__name__}: {error}.",
            remedy="Name a JSON file with images, annotations and categories.",
        ) from error
    # Kept as records that fail when they are read, so that a run counts them.
    images += [_Image(str(key), (), 0, 0, tuple(found)) for key, found in objects.items()]
    if not images:
        raise DataError(
            f"{path} annotates no object.", remedy="Name a file with instance annotations."
        )
    return images


def _parse_image(item: dict[str, Any], objects: tuple[_Object, ...]) -> _Image:
    """Read one entry of ``images``."""
    address = str(item.get("file_name") or item["coco_url"])
    path = PurePosixPath(address)
    last_two = PurePosixPath(*path.parts[-2:])
    if "://" in address:
        path = last_two
    height, width = int(item["height"]), int(item["width"])
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise ValueError(f"image {item['id']} is said to have {width} x {height} pixels")
    files = dict.fromkeys((str(path), str(last_two), path.name))
    return _Image(str(path.with_suffix("")), tuple(files), height, width, objects)


def _open(spec: ImageSetSpec) -> ImageSet:
    spec.require(paths=2)
    return CocoSet(spec.paths[0], spec.paths[1], split=spec.split)


register_image_set("coco", _open, usage="coco:/images,/annotations.json")
