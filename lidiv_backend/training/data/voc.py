"""Pascal VOC and the Semantic Boundaries Dataset, in the folders in which they are published.

What belongs to which split is torchvision's business (`VOCSegmentation`, `SBDataset`); the objects
are read here, since torchvision gives classes only. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lidiv_backend.errors import BadImageError, DataError
from lidiv_backend.images import read_labels, read_rgb
from lidiv_backend.records import AnnotatedImage, ImageSet
from lidiv_backend.training.data.assembly import assemble
from lidiv_backend.training.data.labels import MaskConvention, objects_from_labels
from lidiv_backend.training.data.spec import ImageSetSpec, register_image_set

#: The classes of Pascal VOC in the order of their numbers, from 1.
VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)


class VocSet:
    """Objects of Pascal VOC's segmentation challenge; the void border is ignored.

    Parameters
    ----------
    folder
        Holds ``VOCdevkit/VOC<year>``, or is that folder or ``VOCdevkit`` itself.
    split
        ``train``, ``val`` or ``trainval``; None for the last.
    year
        ``2007`` to ``2012``.

    Raises
    ------
    DataError
        If the folder does not hold this.
    """

    def __init__(self, folder: str | Path, *, split: str | None = None, year: str = "2012") -> None:
        # Imported here, so that the other readers start without it.
        from torchvision.datasets import VOCSegmentation

        root = Path(folder)
        if (root / "JPEGImages").is_dir():
            root = root.resolve().parent
        if root.resolve().name == "VOCdevkit":
            root = root.resolve().parent
        source = _listed(
            partial(VOCSegmentation, str(root), year=year, image_set=split or "trainval"),
            f"{folder} does not hold Pascal VOC {year}",
            f"Name the folder that holds VOCdevkit/VOC{year}.",
        )
        self.name = f"voc{year}"
        self._images = tuple(Path(path) for path in source.images)
        self._classes = tuple(Path(path) for path in source.masks)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> AnnotatedImage:
        image, class_file = self._images[index], self._classes[index]
        object_file = class_file.parent.with_name("SegmentationObject") / class_file.name
        try:
            rgb = read_rgb(image)
            numbers = read_labels(object_file)
            classes = read_labels(class_file)
        except BadImageError as error:
            raise DataError(error.message, remedy=error.remedy) from error
        objects = objects_from_labels(
            numbers, name=image.stem, convention=MaskConvention.VOID, kind="instance"
        )
        if classes.shape == numbers.shape:
            objects = [replace(item, label=_class_of(item.mask, classes)) for item in objects]
        return assemble(image.stem, rgb, objects)


class SbdSet:
    """Objects of the Semantic Boundaries Dataset (needs scipy).

    Parameters
    ----------
    folder
        Holds ``img``, ``inst``, ``train.txt`` and so on, or ``benchmark_RELEASE/dataset`` or
        ``dataset`` with them.
    split
        ``train``, ``val`` or ``train_noval``; None for the first two together.

    Raises
    ------
    DataError
        If the folder does not hold this, or scipy is missing.
    """

    name = "sbd"

    def __init__(self, folder: str | Path, *, split: str | None = None) -> None:
        from torchvision.datasets import SBDataset

        roots = [
            Path(folder, *more) for more in ((), ("dataset",), ("benchmark_RELEASE", "dataset"))
        ]
        root = next((path for path in roots if (path / "img").is_dir()), roots[0])
        self._images = tuple(
            Path(path)
            for part in ([split] if split else ["train", "val"])
            for path in _listed(
                partial(SBDataset, str(root), image_set=part, mode="segmentation"),
                f"{folder} does not hold the Semantic Boundaries Dataset",
                "Name the folder that holds img, inst and train.txt; install scipy if it is "
                "missing.",
            ).images
        )
        self._instances = tuple(root / "inst" / f"{path.stem}.mat" for path in self._images)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> AnnotatedImage:
        image = self._images[index]
        try:
            rgb = read_rgb(image)
        except BadImageError as error:
            raise DataError(error.message, remedy=error.remedy) from error
        numbers, categories = _read_instances(self._instances[index])
        objects = []
        for item in objects_from_labels(numbers, name=image.stem, convention=MaskConvention.VOID):
            number = int(item.name.rpartition(":")[2])
            category = categories[number - 1] if number <= len(categories) else 0
            objects.append(replace(item, label=_class_name(category)))
        return assemble(image.stem, rgb, objects)


def _listed(make: Callable[[], Any], message: str, remedy: str) -> Any:
    """Let torchvision list a set; what it raises becomes `DataError`."""
    try:
        return make()
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(f"{message}: {str(error).splitlines()[0]}.", remedy=remedy) from error


def _read_instances(path: Path) -> tuple[NDArray[np.int32], list[int]]:
    """Instance numbers (H, W) and the category of each instance, from SBD's Matlab file."""
    from scipy.io import loadmat

    try:
        record = loadmat(path)["GTinst"]
        numbers = np.asarray(record["Segmentation"][0, 0]).astype(np.int32)
        categories = [int(value) for value in np.ravel(record["Categories"][0, 0])]
        if numbers.ndim != 2:
            raise ValueError("its segmentation is no image")
    # A damaged file can make the parser raise nearly anything.
    except Exception as error:
        raise DataError(
            f"The objects of {path} cannot be read: {error}.", remedy="Copy the file again."
        ) from error
    return numbers, categories


def _class_of(mask: NDArray[np.bool_], classes: NDArray[np.int32]) -> str:
    """Name of the class that most pixels of an object have."""
    counts = np.bincount(classes[mask], minlength=256)
    counts[[0, 255]] = 0
    return _class_name(int(counts.argmax())) if counts.any() else ""


def _class_name(number: int) -> str:
    return VOC_CLASSES[number - 1] if 1 <= number <= len(VOC_CLASSES) else ""


def _open_voc(spec: ImageSetSpec) -> ImageSet:
    spec.require(paths=1, options=("year",))
    return VocSet(spec.paths[0], split=spec.split, year=spec.options.get("year", "2012"))


def _open_sbd(spec: ImageSetSpec) -> ImageSet:
    spec.require(paths=1)
    return SbdSet(spec.paths[0], split=spec.split)


register_image_set("voc", _open_voc, usage="voc:/folder[?year=2012]")
register_image_set("sbd", _open_sbd, usage="sbd:/folder")
