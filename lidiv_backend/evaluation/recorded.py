"""Recorded clicks in one file, so that they can be rerun where there is no database."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lidiv_backend.clicks import Click
from lidiv_backend.errors import DataError
from lidiv_backend.evaluation.replay import Interaction

_INDEX = "interactions.jsonl"
_FORMAT = 1


def write_interactions(path: Path, interactions: Iterable[Interaction]) -> int:
    """Write what annotators did, with images and masks, into a zip file.

    Parameters
    ----------
    path
        The file; it is written aside and renamed.
    interactions
        Each image is written once, however many objects it has.

    Returns
    -------
    int
        How many were written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.part")
    lines = [json.dumps({"format": _FORMAT})]
    written: set[str] = set()
    with zipfile.ZipFile(aside, "w", zipfile.ZIP_STORED) as archive:

        def put(pixels: NDArray[np.uint8]) -> str:
            digest = hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).hexdigest()
            name = f"{digest[:32]}.png"
            if name not in written:
                encoded, data = cv2.imencode(".png", pixels)
                if not encoded:
                    raise DataError("A picture could not be encoded.")
                archive.writestr(name, data.tobytes())
                written.add(name)
            return name

        for entry in interactions:
            lines.append(
                json.dumps(
                    {
                        "name": entry.name,
                        "project": entry.project,
                        "label": entry.label,
                        "image": put(np.ascontiguousarray(entry.rgb[..., ::-1])),
                        "accepted": put(entry.accepted.astype(np.uint8) * 255),
                        "clicks": [asdict(click) for click in entry.clicks],
                    }
                )
            )
        archive.writestr(_INDEX, "\n".join(lines) + "\n")
    aside.replace(path)
    return len(lines) - 1


def read_interactions(path: Path) -> Iterator[Interaction]:
    """Read what `write_interactions` wrote, an interaction at a time.

    Raises
    ------
    DataError
        If the file cannot be read or holds something else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            first, *lines = archive.read(_INDEX).decode().splitlines()
            if json.loads(first)["format"] != _FORMAT:
                raise ValueError("it is of another format")
            for line in lines:
                yield _interaction(archive, json.loads(line))
    except (OSError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} holds no recorded clicks: {error}.",
            remedy="Write such a file with `lidiv replay --export`.",
        ) from error


def _interaction(archive: zipfile.ZipFile, values: dict[str, Any]) -> Interaction:
    rgb = _picture(archive, values["image"], cv2.IMREAD_COLOR)[..., ::-1]
    accepted = _picture(archive, values["accepted"], cv2.IMREAD_GRAYSCALE) > 127
    clicks = tuple(Click(**click) for click in values["clicks"])
    if not clicks or accepted.shape != rgb.shape[:2]:
        raise ValueError(f"{values['name']} has no clicks, or a mask of another size")
    return Interaction(
        name=values["name"],
        project=values["project"],
        label=values["label"],
        rgb=np.ascontiguousarray(rgb),
        accepted=accepted,
        clicks=clicks,
    )


def _picture(archive: zipfile.ZipFile, name: str, how: int) -> NDArray[np.uint8]:
    pixels = cv2.imdecode(np.frombuffer(archive.read(name), np.uint8), how)
    if pixels is None:
        raise ValueError(f"{name} is no picture")
    return pixels.astype(np.uint8, copy=False)
