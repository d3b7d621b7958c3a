"""Benchmarks by name, in the folder layouts in which they are published.

All other data sets go through `lidiv_backend.training.data.open_image_set`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from lidiv_backend.errors import DataError
from lidiv_backend.records import ImageSet
from lidiv_backend.training.data import (
    CocoSet,
    ImagePair,
    ImageSetSpec,
    MaskConvention,
    PairSet,
    known_image_sets,
    open_image_set,
    register_image_set,
)

#: Environment variable that names the folder with ``eval/``.
DATA_VARIABLE = "LIDIV_DATA"

#: What the published sets use.
_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png"}


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A published set, and how to tell that a folder holds it.

    Parameters
    ----------
    name
        As in tables; also the name of its folder.
    counts
        How many images it has; part of the set -> numbers in circulation. Sets without parts have
        one entry with an empty key.
    origin
        Where to get it.
    layouts
        Folders of images and of masks, one pair for each layout in circulation; empty for a set
        that has a reader of its own.
    masks
        What the numbers in its mask files mean.
    """

    name: str
    counts: Mapping[str, tuple[int, ...]]
    origin: str
    layouts: tuple[tuple[str, str], ...] = field(default=())
    masks: MaskConvention = MaskConvention.BINARY


#: Name on the command line -> the set.
BENCHMARKS: dict[str, Benchmark] = {
    "grabcut": Benchmark(
        name="GrabCut",
        counts={"": (49, 50)},
        origin="Microsoft Research's GrabCut ground truth (Rother et al. 2004), images in data_GT "
        "and trimaps in boundary_GT",
        layouts=(("images", "masks"), ("data_GT", "boundary_GT")),
        masks=MaskConvention.TRIMAP,
    ),
    "berkeley": Benchmark(
        name="Berkeley",
        counts={"": (100,)},
        origin="McGuinness and O'Connor's 100 objects on 96 photographs of the Berkeley set "
        "(2010), as the RITM project packs them",
        layouts=(("images", "masks"),),
    ),
    "davis": Benchmark(
        name="DAVIS",
        counts={"": (345,)},
        origin="345 frames drawn from DAVIS 2016 (Perazzi et al.), as the RITM project packs them",
        layouts=(("img", "gt"), ("images", "masks")),
    ),
    "coco-mval": Benchmark(
        name="COCO_MVal",
        counts={"": (800,)},
        origin="10 objects in each of COCO's 80 categories, as the RITM project packs them",
        layouts=(("img", "gt"), ("images", "masks")),
    ),
    "coco-dev": Benchmark(
        name="COCO-dev",
        counts={"": (160,)},
        origin="this project's development set, 2 objects in each of COCO's 80 categories",
        layouts=(("images", "masks"),),
    ),
    "sbd": Benchmark(
        name="SBD",
        # The list of the test part has 2,857 names; papers use the 2,820 of VOC 2011's.
        counts={"val": (2820, 2857), "train": (8498,)},
        origin="the Semantic Boundaries Dataset (Hariharan et al. 2011), its folder "
        "benchmark_RELEASE",
    ),
    "voc": Benchmark(
        name="VOC2012",
        counts={"val": (1449,), "train": (1464,), "trainval": (2913,)},
        origin="Pascal VOC 2012's segmentation challenge, its folder VOCdevkit",
    ),
}


class CocoSample(CocoSet):
    """The paper's sample of COCO: 10 images of each of 80 categories, one object on each.

    Section 5.1 says no more than that the images and the objects are drawn at random; which ones
    is not published. Here they are drawn with a fixed seed.

    Parameters
    ----------
    images, annotations
        As in `CocoSet`, of COCO's validation part.

    Raises
    ------
    DataError
        If there are not 80 categories with at least 10 images each.
    """

    categories = 80
    images_each = 10

    def __init__(self, images: str | Path, annotations: str | Path) -> None:
        super().__init__(images, annotations)
        self.name = "COCO"
        of_category: dict[str, list[tuple[int, int]]] = {}
        for number, image in enumerate(self._images):
            for place, item in enumerate(image.objects):
                of_category.setdefault(item.label, []).append((number, place))
        if len(of_category) != self.categories:
            raise DataError(
                f"{annotations} has objects of {len(of_category)} categories, COCO has "
                f"{self.categories}.",
                remedy="Name COCO's instances_val2017.json or instances_val2014.json.",
            )
        generator = np.random.default_rng(0)
        drawn = []
        for label, places in sorted(of_category.items()):
            numbers = sorted({number for number, _ in places})
            if len(numbers) < self.images_each:
                raise DataError(
                    f"{annotations} has {len(numbers)} images with the category {label!r}; the "
                    f"sample needs {self.images_each}.",
                    remedy="Name the annotations of all of COCO's validation part.",
                )
            for number in generator.choice(numbers, self.images_each, replace=False):
                choices = [place for image, place in places if image == number]
                chosen = self._images[number].objects[int(generator.choice(choices))]
                drawn.append(replace(self._images[number], objects=(chosen,)))
        self._images = tuple(drawn)


def open_data_set(spec: str, *, split: str | None = None, data: Path | None = None) -> ImageSet:
    """Open a benchmark or any other data set.

    Parameters
    ----------
    spec
        A benchmark's name, which is then looked for in `data`; its name and its folder, as
        ``davis:/data/DAVIS``; or what `open_image_set` understands.
    split
        Part of the set; by default ``val`` for benchmarks that have one.
    data
        Folder that holds the benchmarks, directly or in ``eval/``; by default LIDIV_DATA.

    Returns
    -------
    ImageSet
        The reader.

    Raises
    ------
    DataError
        If it is unknown, cannot be found, or is not what it claims to be.
    """
    if spec in BENCHMARKS:
        spec = f"{spec}:{_find(BENCHMARKS[spec], data)}"
    benchmark = BENCHMARKS.get(spec.partition(":")[0])
    if benchmark is None:
        return open_image_set(spec, split=split)
    if "" in benchmark.counts:
        split = None
    elif split is None:
        split = "val"
    found = open_image_set(spec, split=split)
    expected = benchmark.counts.get(split or "", ())
    # Other years of VOC have other counts; only what is claimed is checked.
    if expected and "year=" not in spec and len(found) not in expected:
        raise DataError(
            f"{spec} has {len(found)} images{f' in {split}' if split else ''}, but "
            f"{benchmark.name} has {' or '.join(map(str, expected))}.",
            remedy=f"Get all of it ({benchmark.origin}), or open it as folder: if it is another.",
        )
    return found


def known_data_sets() -> list[str]:
    """How each kind of data set is written, benchmarks with their origin."""
    lines = [
        f"{name} or {name}:/folder - {benchmark.origin}" for name, benchmark in BENCHMARKS.items()
    ]
    return lines + [
        usage for usage in known_image_sets() if usage.partition(":")[0] not in BENCHMARKS
    ]


def split_specs(text: str) -> list[str]:
    """Divide data sets that were typed with commas between them.

    A spec may hold commas itself (``coco:/images,/file.json``), so a comma only divides where
    something follows that begins like a data set.
    """
    kinds = tuple(f"{usage.partition(':')[0]}:" for usage in known_image_sets())
    specs: list[str] = []
    for part in text.split(","):
        if not specs or part in BENCHMARKS or part.startswith(kinds):
            specs.append(part)
        else:
            specs[-1] += f",{part}"
    return specs


def _find(benchmark: Benchmark, data: Path | None) -> Path:
    root = data or (Path(os.environ[DATA_VARIABLE]) if DATA_VARIABLE in os.environ else None)
    if root is None:
        raise DataError(
            f"Where {benchmark.name} lies is not known.",
            remedy=f"Name its folder, or the one above it by --data or {DATA_VARIABLE}. "
            f"It is {benchmark.origin}.",
        )
    for folder in (root / "eval" / benchmark.name, root / benchmark.name):
        if folder.is_dir():
            return folder
    raise DataError(
        f"There is no folder {benchmark.name} in {root}.", remedy=f"Get {benchmark.origin}."
    )


def _open_pairs(benchmark: Benchmark, spec: ImageSetSpec) -> ImageSet:
    """Open a benchmark of images and masks of the same stem, one object for each image."""
    spec.require(paths=1)
    folder = spec.paths[0]
    for images, masks in benchmark.layouts:
        if (folder / images).is_dir() and (folder / masks).is_dir():
            break
    else:
        expected = " or ".join(f"{images}/ with {masks}/" for images, masks in benchmark.layouts)
        raise DataError(
            f"{folder} is not {benchmark.name}: it has no {expected}.",
            remedy=f"Get {benchmark.origin}.",
        )
    masks_of = {path.stem: path for path in _image_files(folder / masks)}
    return PairSet(
        benchmark.name,
        [
            ImagePair(
                name=path.stem,
                image=path,
                masks=(masks_of[path.stem],) if path.stem in masks_of else (),
            )
            for path in _image_files(folder / images)
        ],
        convention=benchmark.masks,
    )


def _image_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)


def _open_coco_sample(spec: ImageSetSpec) -> ImageSet:
    spec.require(paths=2)
    return CocoSample(*spec.paths)


register_image_set("coco-paper", _open_coco_sample, usage="coco-paper:/images,/annotations.json")
for _name, _benchmark in BENCHMARKS.items():
    if _benchmark.layouts:
        register_image_set(_name, partial(_open_pairs, _benchmark), usage=f"{_name}:/folder")
