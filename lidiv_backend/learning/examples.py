"""Pictures of a candidate beside the model in use, for the page: what one click brings."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from lidiv_backend.clicks import Click
from lidiv_backend.drawing import overlay
from lidiv_backend.errors import LidivError
from lidiv_backend.evaluation.protocols import Method, intersection_over_union
from lidiv_backend.learning.files import read_json, write_file, write_json
from lidiv_backend.records import ImageSet, ObjectMask, choose_images
from lidiv_backend.training.simulation import centre_click

_LOG = logging.getLogger(__name__)
#: So many images are drawn.
EXAMPLES = 4
#: The three pictures of an example.
PICTURES = ("meant", "before", "after")
_FOLDER, _LIST = "examples", "examples.json"
# Pictures are this long at their longer side, in pixels.
_SIDE = 480
_TRUTH_COLOUR = (64, 128, 255)


@dataclass(frozen=True, kw_only=True)
class GateExample:
    """An image that was held out, and what one click in the middle of an object brought.

    Parameters
    ----------
    number
        From 1; names its pictures.
    label
        The object's; may be empty.
    height, width
        Of its pictures, in pixels.
    before, after
        IoU of the model in use and of the candidate.
    """

    number: int
    label: str
    height: int
    width: int
    before: float
    after: float


def draw_examples(candidate: Method, in_use: Method, held_out: ImageSet, folder: Path) -> None:
    """Draw what was meant and what both models make of one click, for some images.

    Pictures are for people only: what fails is logged, and nothing else depends on it.

    Parameters
    ----------
    candidate, in_use
        The models.
    held_out
        Images that the candidate was not trained on.
    folder
        Of the run.
    """
    drawn: list[GateExample] = []
    for index in choose_images(len(held_out), EXAMPLES):
        try:
            image = held_out[index]
            if not image.objects:
                continue
            # Any will do, as long as it is always the same.
            item = min(image.objects, key=lambda o: hashlib.sha256(o.name.encode()).hexdigest())
            click = centre_click(item.mask, np.zeros_like(item.mask), [], item.ignore)
            if click is None:
                continue
            masks = [
                method.predict(method.embed(image.rgb), [click])[0].mask
                for method in (in_use, candidate)
            ]
            drawn.append(_draw(folder, len(drawn) + 1, image.rgb, item, click, masks))
        except LidivError as error:
            _LOG.warning("An example is not drawn. %s", error)
    try:
        write_json(folder / _FOLDER / _LIST, [asdict(example) for example in drawn])
    except LidivError as error:
        _LOG.warning("The examples are not kept. %s", error)


def _draw(
    folder: Path,
    number: int,
    rgb: NDArray[np.uint8],
    item: ObjectMask,
    click: Click,
    masks: Sequence[NDArray[np.bool_]],
) -> GateExample:
    height, width = rgb.shape[:2]
    factor = _SIDE / max(height, width)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    resized = cv2.resize(rgb, size, interpolation=how).astype(np.uint8, copy=False)
    placed = Click(
        x=(click.x + 0.5) * size[0] / width - 0.5,
        y=(click.y + 0.5) * size[1] / height - 0.5,
        positive=click.positive,
    )
    for name, mask in zip(PICTURES, [item.mask, *masks], strict=True):
        small = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST_EXACT) > 0
        if name == "meant":
            picture = overlay(resized, small, colour=_TRUTH_COLOUR)
        else:
            picture = overlay(resized, small, [placed])
        _, content = cv2.imencode(".jpg", picture[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])
        write_file(_picture(folder, number, name), content.tobytes())
    before, after = (intersection_over_union(mask, item.mask, item.ignore) for mask in masks)
    return GateExample(
        number=number,
        label=item.label,
        height=size[1],
        width=size[0],
        before=before,
        after=after,
    )


def read_examples(folder: Path) -> tuple[GateExample, ...]:
    """Read what `draw_examples` drew in the folder of a run; nothing where it drew nothing."""
    try:
        return tuple(GateExample(**values) for values in read_json(folder / _FOLDER / _LIST))
    except (LidivError, TypeError):
        return ()


def read_picture(folder: Path, number: int, name: str) -> bytes | None:
    """Read a picture of an example, a JPEG; None if there is none.

    Parameters
    ----------
    folder
        Of the run.
    number
        Of the example.
    name
        One of `PICTURES`.
    """
    if name not in PICTURES:
        return None
    try:
        return _picture(folder, number, name).read_bytes()
    except OSError:
        return None


def _picture(folder: Path, number: int, name: str) -> Path:
    return folder / _FOLDER / f"{number}-{name}.jpg"
