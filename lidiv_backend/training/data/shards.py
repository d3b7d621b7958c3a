"""Tar shards with an index: many small files in a few large ones.

A folder holds ``*.tar`` files, in which ``<image>.jpg`` is followed by its masks
``<image>.<k>.png``, and ``index.tsv`` with a row for each pair of image and mask: shard, image,
mask, area_frac, kind, label, set and split.
"""

from __future__ import annotations

import csv
import tarfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lidiv_backend.errors import BadImageError, DataError
from lidiv_backend.images import read_labels, read_rgb
from lidiv_backend.records import AnnotatedImage, ImageSet, ObjectMask
from lidiv_backend.training.data.assembly import assemble
from lidiv_backend.training.data.spec import ImageSetSpec, register_image_set

_COLUMNS = ("shard", "image", "mask", "area_frac", "kind", "label", "set", "split")


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskEntry:
    """What the index says of one mask.

    Parameters
    ----------
    name
        Name of the object, as in `ObjectMask`.
    kind
        What the mask is, as in `ObjectMask`.
    label
        Class name, or an empty string.
    area_fraction
        Part of the image that the mask covers, in [0, 1].
    source
        The set that the image comes from.
    """

    name: str
    kind: str
    label: str
    area_fraction: float
    source: str


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a file lies in a shard."""

    shard: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class _Record:
    name: str
    image: _Place
    masks: tuple[_Place, ...]
    entries: tuple[MaskEntry, ...]


class ShardSet:
    """Images and masks in tar shards, with random access.

    Parameters
    ----------
    folder
        Holds ``index.tsv`` and the shards.
    split
        Part of the set, as the index names it; None for all of it.
    kinds
        Kinds of masks to keep; None for all. Images that keep no mask are left out.
    sources
        Sets to keep, as the index names them; None for all.

    Raises
    ------
    DataError
        If the folder is not such a set, or nothing of it is asked for.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        split: str | None = None,
        kinds: Collection[str] | None = None,
        sources: Collection[str] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.name = self.folder.name
        rows = [
            row
            for row in _read_index(self.folder / "index.tsv")
            if (split is None or row["split"] == split)
            and (kinds is None or row["kind"] in kinds)
            and (sources is None or row["set"] in sources)
        ]
        if not rows:
            raise DataError(
                f"The index of {self.folder} has no mask of split {split or 'any'}, kinds "
                f"{', '.join(sorted(kinds)) if kinds is not None else 'any'} and sets "
                f"{', '.join(sorted(sources)) if sources is not None else 'any'}.",
                remedy="Ask for a split, kinds and sets that index.tsv names.",
            )
        shards = sorted({row["shard"] for row in rows})
        self._shards = tuple(self.folder / shard for shard in shards)
        places = {
            shard: {
                member: _Place(number, offset, size)
                for member, offset, size in _list_members(self.folder / shard)
            }
            for number, shard in enumerate(shards)
        }
        self._records = _group(rows, places)

    def __len__(self) -> int:
        return len(self._records)

    def entries(self, index: int) -> tuple[MaskEntry, ...]:
        """Tell what the index says of an image's masks, without reading them.

        Parameters
        ----------
        index
            Which image, from 0.

        Returns
        -------
        tuple of MaskEntry
            In the order of the image's objects, as long as no mask turns out to be unusable.
        """
        return self._records[index].entries

    def __getitem__(self, index: int) -> AnnotatedImage:
        record = self._records[index]
        try:
            rgb = read_rgb(self._read(record.image))
        except BadImageError as error:
            raise DataError(
                f"The image {record.name} in {self._shards[record.image.shard]} is unusable: "
                f"{error.message}",
                remedy="Make the shard again.",
            ) from error
        objects, problems = [], []
        for entry, place in zip(record.entries, record.masks, strict=True):
            try:
                mask = read_labels(self._read(place)) > 0
            except BadImageError as error:
                problems.append(f"{entry.name}: {error.message}")
                continue
            objects.append(
                ObjectMask(name=entry.name, mask=mask, kind=entry.kind, label=entry.label)
            )
        return assemble(record.name, rgb, objects, problems)

    def _read(self, place: _Place) -> bytes:
        """Content of a file in a shard; shorter than it should be where the shard is cut off."""
        path = self._shards[place.shard]
        # Opened for each read: nothing to share between processes or to leave open, and next to
        # decoding it costs nothing.
        try:
            with path.open("rb") as file:
                file.seek(place.offset)
                return file.read(place.size)
        except OSError as error:
            raise BadImageError(f"The shard {path} cannot be read: {error}.") from error


def _read_index(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise DataError(
                    f"{path} has no column {', '.join(missing)}.",
                    remedy=f"It needs, separated by tabs: {', '.join(_COLUMNS)}.",
                )
            rows = []
            for row in reader:
                if any(row[name] is None for name in _COLUMNS):
                    raise DataError(
                        f"Line {reader.line_num} of {path} has too few columns.",
                        remedy="Make the index again.",
                    )
                rows.append(row)
            return rows
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path} cannot be read, so {path.parent} is no folder of shards: {error}.",
            remedy="Name the folder that holds index.tsv and the shards.",
        ) from error


def _list_members(path: Path) -> list[tuple[str, int, int]]:
    """Name, offset of the content and size of each file in a plain tar file."""
    members = []
    try:
        with tarfile.open(path, "r:") as archive:
            try:
                for member in archive:
                    if member.isreg():
                        members.append((member.name, member.offset_data, member.size))
            except tarfile.TarError:
                # Cut off: what lies before is of use, the rest is missed image by image.
                pass
    except (OSError, tarfile.TarError) as error:
        raise DataError(
            f"The shard {path} cannot be read: {error}.",
            remedy="Copy it again; it must be a tar file without compression.",
        ) from error
    return members


def _group(rows: list[dict[str, str]], places: dict[str, dict[str, _Place]]) -> tuple[_Record, ...]:
    """Rows of the index by image, in the order of the index."""
    shards = list(places)
    by_image: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in rows:
        by_image.setdefault((row["shard"], row["image"]), []).append(row)
    records = []
    for (shard, image), of_image in by_image.items():
        entries = []
        for row in of_image:
            try:
                area_fraction = float(row["area_frac"])
            except ValueError as error:
                raise DataError(
                    f"The index says that {row['mask']} covers {row['area_frac']!r} of its image.",
                    remedy="Make the index again.",
                ) from error
            entries.append(
                MaskEntry(
                    name=PurePosixPath(row["mask"]).stem,
                    kind=row["kind"],
                    label=row["label"],
                    area_fraction=area_fraction,
                    source=row["set"],
                )
            )
        # What a shard lacks has no bytes, and is missed when it is asked for.
        nowhere = _Place(shards.index(shard), 0, 0)
        records.append(
            _Record(
                name=PurePosixPath(image).stem,
                image=places[shard].get(image, nowhere),
                masks=tuple(places[shard].get(row["mask"], nowhere) for row in of_image),
                entries=tuple(entries),
            )
        )
    return tuple(records)


def _open(spec: ImageSetSpec) -> ImageSet:
    spec.require(paths=1, options=("kinds", "sets"))
    chosen = {name: value.split(",") for name, value in spec.options.items()}
    return ShardSet(
        spec.paths[0], split=spec.split, kinds=chosen.get("kinds"), sources=chosen.get("sets")
    )


register_image_set("shards", _open, usage="shards:/folder[?kinds=instance,part&sets=voc,ccp]")
