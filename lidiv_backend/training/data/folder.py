"""A folder of images and masks, the layout that most people have."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lidiv_backend.errors import BadImageError, DataError
from lidiv_backend.images import read_labels, read_rgb
from lidiv_backend.records import AnnotatedImage, ImageSet
from lidiv_backend.training.data.assembly import assemble
from lidiv_backend.training.data.labels import MaskConvention, objects_from_labels
from lidiv_backend.training.data.spec import ImageSetSpec, register_image_set, take_part

_LOSSY = (".jpg", ".jpeg")
_SUFFIXES = (".png", *_LOSSY, ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm", ".avif")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePair:
    """An image file and its mask files.

    Parameters
    ----------
    name
        Name of the image.
    image
        The image.
    masks
        Its masks, each of which can hold several objects.
    label
        Class name, or an empty string.
    """

    name: str
    image: Path
    masks: tuple[Path, ...]
    label: str = ""


class PairSet:
    """Image files with mask files, however they are laid out.

    Parameters
    ----------
    name
        Name of the set.
    pairs
        The images and their masks.
    convention
        What the numbers in the masks mean.
    """

    def __init__(
        self,
        name: str,
        pairs: Sequence[ImagePair],
        *,
        convention: MaskConvention = MaskConvention.AUTO,
    ) -> None:
        self.name = name
        self.pairs = tuple(pairs)
        self.convention = convention

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> AnnotatedImage:
        pair = self.pairs[index]
        try:
            rgb = read_rgb(pair.image)
        except BadImageError as error:
            raise DataError(error.message, remedy=error.remedy) from error
        objects, problems = [], []
        for path in pair.masks:
            try:
                objects += objects_from_labels(
                    read_labels(path),
                    name=pair.name if len(pair.masks) == 1 else path.stem,
                    convention=self.convention,
                    lossy=path.suffix.lower() in _LOSSY,
                    label=pair.label,
                )
            except (BadImageError, DataError) as error:
                problems.append(f"{path.name}: {error.message}")
        return assemble(pair.name, rgb, objects, problems)


class FolderSet(PairSet):
    """A folder of images and masks.

    Two layouts are known. With the folders ``images`` and ``masks``, ``images/X.*`` belongs to
    ``masks/X.*``. Without them, ``X.jpg`` (or another kind that is not PNG) belongs to ``X.png``
    beside it. In both, the masks may also be ``X.0.png``, ``X.1.png`` and so on. Images without a
    mask and masks without an image stay in the set as records that raise `DataError`, so that a
    run counts them.

    Parameters
    ----------
    folder
        The folder, or one that holds a folder of this kind for each split.
    split
        Part of the set: the folder of this name where there is one, else see `hash_split`; None
        for all of it.
    convention
        What the numbers in the masks mean.

    Raises
    ------
    DataError
        If the folder does not exist or holds no image.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        split: str | None = None,
        convention: MaskConvention = MaskConvention.AUTO,
    ) -> None:
        root = Path(folder)
        divided = split is not None and (root / split).is_dir()
        pairs = _pair_up(root / split if divided and split else root)
        if not divided:
            pairs = take_part(pairs, split, name=lambda pair: pair.name, what=str(root))
        super().__init__(root.name, pairs, convention=convention)


def _pair_up(root: Path) -> list[ImagePair]:
    """Find the images of a folder and their masks, in order of their names."""
    images_folder, masks_folder = root / "images", root / "masks"
    try:
        if images_folder.is_dir() and masks_folder.is_dir():
            images, masks = _files(images_folder), _files(masks_folder)
        else:
            images_folder, files = root, _files(root)
            images = [path for path in files if path.suffix.lower() != ".png"]
            masks = [path for path in files if path.suffix.lower() == ".png"]
    except OSError as error:
        raise DataError(
            f"The folder {root} cannot be read: {error}.", remedy="Check the path."
        ) from error
    if not images:
        raise DataError(
            f"The folder {root} holds no images with masks.",
            remedy="Put images into images/ and masks with the same names into masks/, or X.png "
            "beside each X.jpg.",
        )
    by_name: dict[str, Path] = {}
    for path in images:
        if path.stem in by_name:
            raise DataError(
                f"{path} and {by_name[path.stem]} have the same name, so their masks cannot be "
                "told apart.",
                remedy="Rename one of them.",
            )
        by_name[path.stem] = path
    masks_of: dict[str, list[Path]] = {}
    for path in masks:
        name = path.stem
        if name not in by_name:
            name = re.sub(r"\.\d+$", "", name)
        masks_of.setdefault(name, []).append(path)
    return [
        ImagePair(
            name=name,
            image=by_name.get(name, images_folder / f"{name}.*"),
            masks=tuple(masks_of.get(name, ())),
        )
        for name in sorted(by_name.keys() | masks_of.keys())
    ]


def _files(folder: Path) -> list[Path]:
    """Image files of a folder, in order of their names, hidden ones left out."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in _SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def read_convention(spec: ImageSetSpec) -> MaskConvention:
    """Read the option ``masks`` of a spec.

    Parameters
    ----------
    spec
        The spec.

    Returns
    -------
    MaskConvention
        What it says; AUTO if it says nothing.

    Raises
    ------
    DataError
        If it names no convention.
    """
    wanted = spec.options.get("masks", MaskConvention.AUTO)
    try:
        return MaskConvention(wanted)
    except ValueError as error:
        raise DataError(
            f"The data set {spec.text!r} asks for masks of the kind {wanted!r}.",
            remedy=f"Known are: {', '.join(MaskConvention)}.",
        ) from error


def _open(spec: ImageSetSpec) -> ImageSet:
    spec.require(paths=1, options=("masks",))
    return FolderSet(spec.paths[0], split=spec.split, convention=read_convention(spec))


register_image_set("folder", _open, usage="folder:/folder[?masks=auto|binary|trimap|labels|void]")
