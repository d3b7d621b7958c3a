"""Who segments which object with which model, and in what order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lidiv_backend.drawing import overlay
from lidiv_backend.errors import BadRequestError, DataError
from lidiv_backend.images import read_labels, read_rgb
from lidiv_backend.learning.files import write_json
from lidiv_backend.records import ImageSet

_FORMAT = 1
_PLAN = "study.json"


@dataclass(frozen=True, kw_only=True)
class StudyModel:
    """A model that drives the interface in some of the tasks.

    Parameters
    ----------
    label
        For the report; participants never see it.
    source
        What `lidiv evaluate` calls a method: a preset, a folder of weights, ...
    backend
        Address of the backend that serves it, as Label Studio reaches it.
    title
        Of its project, which tells participants nothing.
    """

    label: str
    source: str
    backend: str
    title: str


@dataclass(frozen=True, kw_only=True)
class StudyTask:
    """One object, one participant, one model.

    Parameters
    ----------
    participant
        From 1.
    place
        In the participant's order, from 1.
    object
        Number of the object, from 0.
    model
        Label of the model.
    """

    participant: int
    place: int
    object: int
    model: str

    @property
    def key(self) -> str:
        """Names the task, in the study and in its data in Label Studio."""
        return f"participant {self.participant}, task {self.place}"


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """A whole study.

    Parameters
    ----------
    seed
        Of all that was drawn.
    models
        In the order in which they were named.
    objects
        Names of the objects, as in their data set.
    tasks
        Participant by participant, in their order.
    """

    seed: int
    models: tuple[StudyModel, ...]
    objects: tuple[str, ...]
    tasks: tuple[StudyTask, ...]

    def model(self, label: str) -> StudyModel:
        """Look up a model."""
        return next(model for model in self.models if model.label == label)


def draw_tasks(
    *, participants: int, objects_each: int, objects: int, models: Sequence[str], seed: int
) -> tuple[StudyTask, ...]:
    """Draw who does what.

    Every participant gets each of their objects once with every model, all in random order, as in
    the paper. Participants get different objects as long as there are enough of them.

    Parameters
    ----------
    participants
        How many.
    objects_each
        Objects for each participant.
    objects
        How many there are.
    models
        Their labels.
    seed
        The same seed draws the same.

    Raises
    ------
    BadRequestError
        If a participant would get an object twice.
    """
    if min(participants, objects_each) < 1 or objects_each > objects or not models:
        raise BadRequestError(
            f"{objects_each} different objects for each of {participants} participants cannot be "
            f"drawn from {objects}.",
            remedy="Name a larger data set, or fewer objects.",
        )
    rng = np.random.default_rng([seed, 1])
    pool: list[int] = []
    tasks = []
    for participant in range(1, participants + 1):
        own: list[int] = []
        while len(own) < objects_each:
            pool = pool or rng.permutation(objects).tolist()
            # Near the end of one round and the beginning of the next the same one may come again.
            place = next((i for i, number in enumerate(pool) if number not in own), None)
            if place is None:
                pool = []
                continue
            own.append(pool.pop(place))
        pairs = [(number, model) for number in own for model in models]
        order = rng.permutation(len(pairs))
        tasks += [
            StudyTask(
                participant=participant,
                place=place,
                object=pairs[index][0],
                model=pairs[index][1],
            )
            for place, index in enumerate(order, start=1)
        ]
    return tuple(tasks)


def title_models(title: str, models: Sequence[tuple[str, str, str]], seed: int) -> list[StudyModel]:
    """Give models titles that tell nothing: ``title A``, ``title B``, ... in random order.

    Parameters
    ----------
    title
        Of the study.
    models
        Label, source and backend of each.
    seed
        Of the order.
    """
    letters = np.random.default_rng([seed, 2]).permutation(len(models))
    return [
        StudyModel(label=label, source=source, backend=backend, title=f"{title} {chr(65 + letter)}")
        for (label, source, backend), letter in zip(models, letters.tolist(), strict=True)
    ]


def choose_objects(images: ImageSet, count: int, folder: Path, *, seed: int) -> tuple[str, ...]:
    """Draw objects of a data set, one of an image, and write their pictures.

    Parameters
    ----------
    images
        The data set.
    count
        How many objects.
    folder
        Gets ``pictures/N.png`` (the image), ``N-mask.png`` and ``N-target.png`` (what participants
        are shown).
    seed
        Of what is drawn.

    Returns
    -------
    tuple of str
        Their names.

    Raises
    ------
    BadRequestError
        If the set has too few images that can be used.
    """
    rng = np.random.default_rng([seed, 3])
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    names: list[str] = []
    for index in rng.permutation(len(images)).tolist():
        if len(names) == count:
            break
        try:
            image = images[index]
        except DataError:
            continue
        usable = [item for item in image.objects if item.mask.any() and not item.mask.all()]
        if not usable:
            continue
        item = usable[int(rng.integers(len(usable)))]
        number = len(names)
        _write(pictures / f"{number}.png", image.rgb[..., ::-1])
        _write(pictures / f"{number}-mask.png", item.mask.astype(np.uint8) * 255)
        _write(pictures / f"{number}-target.png", overlay(image.rgb, item.mask)[..., ::-1])
        names.append(item.name)
    if len(names) < count:
        raise BadRequestError(
            f"{images.name} has {len(names)} images that can be used; {count} are needed.",
            remedy="Name a larger data set, or fewer objects.",
        )
    return tuple(names)


def _write(path: Path, pixels: NDArray[np.uint8]) -> None:
    encoded, data = cv2.imencode(".png", np.ascontiguousarray(pixels))
    if not encoded:
        raise DataError("A picture could not be encoded.")
    path.write_bytes(data.tobytes())


def read_object(folder: Path, number: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Read an object's image, uint8 (H, W, 3), and mask, bool (H, W)."""
    pictures = folder / "pictures"
    rgb = read_rgb((pictures / f"{number}.png").read_bytes())
    mask = read_labels((pictures / f"{number}-mask.png").read_bytes()) > 0
    return rgb, mask


def write_plan(folder: Path, plan: StudyPlan) -> None:
    """Write a study; who reads it knows which model is behind which project."""
    write_json(folder / _PLAN, {"format": _FORMAT, **asdict(plan)})


def read_plan(folder: Path) -> StudyPlan:
    """Read a study.

    Raises
    ------
    DataError
        If there is none in the folder, or it is damaged.
    """
    path = folder / _PLAN
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if values.pop("format") != _FORMAT:
            raise ValueError("it is of another format")
        return StudyPlan(
            seed=values["seed"],
            models=tuple(StudyModel(**model) for model in values["models"]),
            objects=tuple(values["objects"]),
            tasks=tuple(StudyTask(**task) for task in values["tasks"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is no study: {error}.", remedy="Make one with `lidiv study create`."
        ) from error


def has_plan(folder: Path) -> bool:
    """Whether a folder holds a study."""
    return (folder / _PLAN).is_file()
