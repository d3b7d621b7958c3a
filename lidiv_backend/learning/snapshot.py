"""Accepted annotations, frozen: what a run learns from does not change while it learns.

A snapshot is a file of records, named by the sha256 of what it holds. It says of every image its
content, and of every mask whose it is, what it looks like and by which clicks it was made. A stable
hash of an image's content decides whether it is held back, so that an image keeps its part whatever
else comes or goes, in every project, task and file that shows it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lidiv_backend.clicks import Click
from lidiv_backend.errors import DataError, LidivError
from lidiv_backend.labelstudio.config import parse_label_config
from lidiv_backend.labelstudio.options import read_options
from lidiv_backend.labelstudio.results import PlacedClick, SavedRegion, read_saved_regions
from lidiv_backend.learning.files import read_json, write_json
from lidiv_backend.learning.store import Store, StoredAnnotation, StoredAnswer
from lidiv_backend.learning.vault import Vault
from lidiv_backend.predictor import LOOKED_AHEAD
from lidiv_backend.records import AnnotatedImage, ObjectMask
from lidiv_backend.training.data.assembly import assemble

#: Fetches an image: project, Label Studio's number of the task, address; uint8 (H, W, 3), upright.
Fetch = Callable[[str, int | None, str], NDArray[np.uint8]]

_FORMAT = 1
# More reasons than this help nobody.
_MAX_PROBLEMS = 500


@dataclass(frozen=True, kw_only=True)
class SnapshotMask:
    """An accepted mask.

    Parameters
    ----------
    name
        Project, annotation and region.
    mask
        Its digest in the vault.
    label
        Of the region; may be empty.
    clicks
        Prompts that led to it, in order, in pixels; empty where it was drawn by hand.
    stepped
        Whether the annotator chose it among the alternatives instead of taking the first.
    rejected
        Heads of f whose masks they saw for these clicks, and stepped on from.
    """

    name: str
    mask: str
    label: str = ""
    clicks: tuple[Click, ...] = ()
    stepped: bool = False
    rejected: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SnapshotImage:
    """An image and its accepted masks.

    Parameters
    ----------
    image
        Its digest in the vault.
    held_out
        Whether it is never trained on.
    masks
        At least one.
    """

    image: str
    held_out: bool
    masks: tuple[SnapshotMask, ...]


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A frozen set of accepted annotations.

    Parameters
    ----------
    digest
        Names it by what it holds.
    channel
        What it is for.
    images
        In the order of their digests.
    problems
        What was left out, a sentence each; not part of the digest.
    """

    digest: str
    channel: str
    images: tuple[SnapshotImage, ...]
    problems: tuple[str, ...] = field(default=())

    def part(self, *, held_out: bool) -> tuple[SnapshotImage, ...]:
        """The images that are held out, or those that are trained on."""
        return tuple(image for image in self.images if image.held_out == held_out)


def is_held_out(image: str, share: float) -> bool:
    """Decide by an image's digest alone whether it is held out.

    Parameters
    ----------
    image
        Its digest.
    share
        Of all images, in [0, 1].
    """
    drawn = hashlib.sha256(f"hold-out {image}".encode()).digest()
    return int.from_bytes(drawn[:8], "big") < share * 2**64


def take_snapshot(
    store: Store,
    vault: Vault,
    folder: Path,
    fetch: Fetch,
    *,
    channel: str,
    projects: Collection[str] | None,
    holdout: float,
) -> Snapshot:
    """Freeze what was accepted until now.

    Parameters
    ----------
    store
        The database.
    vault
        Where images and masks are kept.
    folder
        Where the snapshot's file goes.
    fetch
        Called for images that the vault does not have.
    channel
        What the snapshot is for.
    projects
        Whose annotations; None for all.
    holdout
        Share of the images that is held out.

    Returns
    -------
    Snapshot
        Possibly without any image. Skipped and deleted annotations are not in it; annotations that
        cannot be used are left out, each with its reason.

    Raises
    ------
    StoreError, StorageError
        If the database or the disk fails.
    """
    collector = _Collector(store, vault, fetch)
    for annotation in store.accepted_annotations(projects):
        collector.take(annotation)
    images = tuple(
        SnapshotImage(
            image=image,
            held_out=is_held_out(image, holdout),
            masks=tuple(sorted(masks, key=lambda mask: mask.name)),
        )
        for image, masks in sorted(collector.found.items())
    )
    content = _content(channel, images)
    digest = _digest(content)
    problems = tuple(collector.problems[:_MAX_PROBLEMS])
    write_json(folder / f"{digest}.json", content | {"problems": problems})
    return Snapshot(digest=digest, channel=channel, images=images, problems=problems)


def read_snapshot(folder: Path, digest: str) -> Snapshot:
    """Read a snapshot.

    Raises
    ------
    StorageError
        If its file cannot be read.
    DataError
        If it holds something else than its name says.
    """
    values = read_json(folder / f"{digest}.json")
    try:
        problems = tuple(values.pop("problems"))
        if _digest(values) != digest or values["format"] != _FORMAT:
            raise ValueError("its content is another one")
        images = tuple(
            SnapshotImage(
                image=image["image"],
                held_out=image["held_out"],
                masks=tuple(
                    SnapshotMask(
                        **{
                            **mask,
                            "clicks": tuple(Click(**click) for click in mask["clicks"]),
                            # Snapshots of the first version have none.
                            "rejected": tuple(mask.get("rejected", ())),
                        }
                    )
                    for mask in image["masks"]
                ),
            )
            for image in values["images"]
        )
        return Snapshot(digest=digest, channel=values["channel"], images=images, problems=problems)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"The snapshot {digest} is damaged ({error}).", remedy="Start another run."
        ) from error


def _content(channel: str, images: Iterable[SnapshotImage]) -> dict[str, Any]:
    # Through JSON, so that tuples and lists are told apart neither here nor after reading.
    plain = {"format": _FORMAT, "channel": channel, "images": [asdict(image) for image in images]}
    return dict(json.loads(json.dumps(plain)))


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class _Collector:
    """Gathers masks by their image, and why others cannot be used."""

    def __init__(self, store: Store, vault: Vault, fetch: Fetch) -> None:
        self.found: dict[str, list[SnapshotMask]] = {}
        self.problems: list[str] = []
        self._store = store
        self._vault = vault
        self._fetch = fetch
        self._data_keys: dict[tuple[str, str], str] = {}
        self._helper_labels: dict[str, frozenset[str]] = {}
        # An image that cannot be had is not asked for again for each of its annotations.
        self._images: dict[tuple[str, int | None, str], str | LidivError] = {}

    def take(self, annotation: StoredAnnotation) -> None:
        """Take the masks of an annotation."""
        where = f"Annotation {annotation.annotation} of project {annotation.project}"
        saved = read_saved_regions(annotation.result)
        self.problems += [f"{where}: {reason}" for reason in saved.skipped]
        if not saved.regions:
            if annotation.result and not saved.skipped:
                self.problems.append(f"{where} holds no brush mask.")
            return
        helper_labels = self._helpers(annotation.project)
        answers = self._store.answers([region.id for region in saved.regions if region.id])
        for number, region in enumerate(saved.regions, start=1):
            if helper_labels.intersection(region.labels):
                self.problems.append(
                    f"{where}, region {region.id or number}: an alternative of an overlay that "
                    "nobody chose."
                )
                continue
            try:
                image = self._image(annotation, region.to_name)
                mask = self._mask(annotation, region, number, image, answers.get(region.id))
            except (DataError, LidivError) as error:
                if error.kind in ("database", "storage"):
                    raise
                self.problems.append(f"{where}, region {region.id or number}: {error.message}")
                continue
            self.found.setdefault(image, []).append(mask)

    def _mask(
        self,
        annotation: StoredAnnotation,
        region: SavedRegion,
        number: int,
        image: str,
        answer: StoredAnswer | None,
    ) -> SnapshotMask:
        height, width = self._vault.image_size(image)
        if region.mask.shape != (height, width):
            raise DataError(
                f"The mask has {region.mask.shape[1]} x {region.mask.shape[0]} pixels, its image "
                f"{width} x {height}."
            )
        if not region.mask.any():
            raise DataError("The mask is empty.")
        found = SnapshotMask(
            name=f"{annotation.project}/{annotation.annotation}/{region.id or number}",
            mask=self._vault.put_mask(region.mask),
            label=region.labels[0] if region.labels else "",
        )
        if answer is None or answer.project != annotation.project:
            return found
        clicks = tuple(
            PlacedClick(id=click.id, x=click.x, y=click.y, positive=click.positive).in_pixels(
                height=height, width=width
            )
            for click in answer.clicks
            if not click.next
        )
        return replace(found, clicks=clicks, stepped=answer.shown > 0, rejected=_rejected(answer))

    def _image(self, annotation: StoredAnnotation, to_name: str) -> str:
        key = self._data_key(annotation, to_name)
        address = annotation.task_data.get(key)
        if not isinstance(address, str):
            raise DataError(f"Its task has no image under {key!r}.")
        place = (annotation.project, annotation.task, address)
        if place not in self._images:
            try:
                self._images[place] = self._have(*place)
            except LidivError as error:
                self._images[place] = error
        image = self._images[place]
        if isinstance(image, LidivError):
            raise image
        return image

    def _have(self, project: str, task: int | None, address: str) -> str:
        known = self._store.image_digest(project, task, address)
        if known is not None and self._vault.has_image(known):
            return known
        digest = self._vault.put_image(self._fetch(project, task, address))
        self._store.keep_image(project, task, address, digest)
        return digest

    def _helpers(self, project: str) -> frozenset[str]:
        """Labels under which a project is shown alternatives; what is left of them is no mask."""
        if project not in self._helper_labels:
            connection = self._store.connection(project)
            options, _ = read_options(connection.extra_params if connection else {})
            self._helper_labels[project] = frozenset(options.overlay)
        return self._helper_labels[project]

    def _data_key(self, annotation: StoredAnnotation, to_name: str) -> str:
        """Key of the task's data that holds the image."""
        place = (annotation.project, to_name)
        if place not in self._data_keys:
            connection = self._store.connection(annotation.project)
            try:
                config = parse_label_config(connection.label_config if connection else "")
                self._data_keys[place] = config.image(to_name).data_key
            except LidivError:
                # Never connected by /setup, or changed since: most projects call it so.
                self._data_keys[place] = "image"
        return self._data_keys[place]


def _rejected(answer: StoredAnswer) -> tuple[int, ...]:
    """Heads whose masks an annotator stepped on from before they took what was showing.

    None if that was no head's: then it does not say which of the heads should go first.
    """
    steps = 0
    for click in reversed(answer.clicks):
        if not click.next:
            break
        steps += 1
    # Who went all the way round has seen, and not taken, all the others.
    seen = answer.proposals if steps >= len(answer.proposals) else answer.proposals[: answer.shown]
    # A slice, for the proposals of an answer may not be known.
    taken = answer.proposals[answer.shown : answer.shown + 1]
    if not steps or any(proposal.head == LOOKED_AHEAD for proposal in taken):
        return ()
    return tuple(
        proposal.head
        for place, proposal in enumerate(seen)
        if place != answer.shown and proposal.head != LOOKED_AHEAD
    )


class SnapshotSet:
    """Images of a snapshot; an `ImageSet`.

    Parameters
    ----------
    images
        Which.
    vault
        Where they are kept.
    name
        Of the set.
    """

    def __init__(self, images: Collection[SnapshotImage], vault: Vault, *, name: str) -> None:
        self.name = name
        self.images = tuple(images)
        self._vault = vault

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> AnnotatedImage:
        image = self.images[index]
        rgb = self._vault.image(image.image)
        objects, problems = [], []
        for mask in image.masks:
            try:
                pixels = self._vault.mask(mask.mask)
            except DataError as error:
                problems.append(f"{mask.name}: {error.message}")
                continue
            objects.append(
                ObjectMask(
                    name=mask.name,
                    mask=pixels,
                    label=mask.label,
                    clicks=mask.clicks,
                    rejected=mask.rejected,
                )
            )
        return assemble(image.image, rgb, objects, problems)
