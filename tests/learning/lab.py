"""A small lab: tasks with images, and annotations as Label Studio saves them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lidiv_backend.labelstudio.images import ImageFetchError
from lidiv_backend.labelstudio.rle import encode_mask
from lidiv_backend.learning.store import Store, StoredAnnotation
from tests import tiny

PROJECT = "7.1795328789"


def region(mask: NDArray[np.bool_], *, identity: str = "r", label: str = "Cell") -> list[Any]:
    """A brush region as the recommended label config saves it: two results with one id."""
    height, width = mask.shape
    common = {
        "id": identity,
        "to_name": "image",
        "original_height": height,
        "original_width": width,
        "image_rotation": 0,
    }
    rle = {"format": "rle", "rle": encode_mask(mask)}
    return [
        common | {"from_name": "brush", "type": "brush", "value": rle},
        common | {"from_name": "label", "type": "labels", "value": rle | {"labels": [label]}},
    ]


@dataclass
class Lab:
    """Tasks 0, 1, ... show the images of a painted set; `accept` annotates one of them."""

    store: Store
    images: tiny.PaintedSet = field(default_factory=lambda: tiny.PaintedSet(length=40, width=96))
    project: str = PROJECT
    fetched: list[str] = field(default_factory=list)
    gone: set[str] = field(default_factory=set)

    def fetch(self, project: str, task: int | None, address: str) -> NDArray[np.uint8]:
        self.fetched.append(address)
        if address in self.gone:
            raise ImageFetchError("The image is gone.")
        rgb: NDArray[np.uint8] = self.images[int(address.split("/")[-1].split(".")[0])].rgb
        return rgb

    def annotation(
        self, task: int, result: Sequence[Any] | None = None, **changes: Any
    ) -> StoredAnnotation:
        if result is None:
            objects = self.images[task].objects
            result = [
                part
                for number, item in enumerate(objects)
                for part in region(item.mask, identity=f"region-{task}-{number}")
            ]
        values: dict[str, Any] = {
            "project": self.project,
            "annotation": 1000 + task,
            "task": task,
            "task_data": {"image": f"/data/upload/7/{task}.png"},
            "result": list(result),
            "was_cancelled": False,
            "completed_by": 1,
            "lead_time": 2.0,
        }
        return StoredAnnotation(**(values | changes))

    def accept(self, task: int, result: Sequence[Any] | None = None, **changes: Any) -> None:
        """Let the webhook arrive."""
        annotation = self.annotation(task, result, **changes)
        self.store.keep_event(
            action="ANNOTATION_CREATED", project=self.project, payload={}, annotation=annotation
        )
