"""A day of annotating, through the interface: Label Studio's recorded bodies with other clicks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lidiv_backend.labelstudio.rle import encode_mask
from tests.image_host import Answer, ImageHost, encoded
from tests.labelstudio import golden
from tests.tiny import PaintedSet

#: Of the recorded bodies.
PROJECT = "1.1795328789"
#: Posts a body to a path of the backend.
Post = Callable[[str, Any], Any]


@dataclass
class LabDay:
    """Tasks 100, 101, ... show the images of a painted set.

    ``"+n-"`` is a click in the middle of the object, another one there, which asks for the next
    proposal, and a negative one in the corner. Further positive ones are aside, so that they do not
    ask for the next.
    """

    post: Post
    host: ImageHost
    images: PaintedSet = field(
        default_factory=lambda: PaintedSet(length=40, height=96, width=128, count=1)
    )
    made: int = 0

    def connect(self, **changes: Any) -> None:
        self.post("/setup", golden.load("backend_setup")["body"] | changes)

    def accept(self, clicks: str) -> str:
        """Click, take what is shown, and save it; gives the version that answered."""
        task = 100 + self.made
        image = self.images[self.made % len(self.images)]
        self.made += 1
        address = f"/data/upload/1/{task}.png"
        self.host.routes[address] = Answer(body=encoded(image.rgb))
        (truth,) = [item.mask for item in image.objects]
        points = _points(truth, clicks, task)
        region, version = None, ""
        for count in range(1, len(points) + 1):
            body = copy.deepcopy(golden.load("backend_predict_interactive")["body"])
            body["params"]["context"] = {"result": points[:count]}
            body["tasks"] = [body["tasks"][0] | {"id": task, "data": {"image": address}}]
            (answer,) = self.post("/predict", body)["results"]
            (region,) = answer["result"]
            version = answer["model_version"]
        assert region is not None
        # Corrected by hand: the region keeps its id, and what is learnt from is right.
        region["value"]["rle"] = encode_mask(truth)
        event = copy.deepcopy(golden.load("backend_webhook_ANNOTATION_CREATED")["body"])
        event["annotation"] |= {"id": 1000 + task, "task": task, "result": [region]}
        event["task"] |= {"id": task, "data": {"image": address}}
        self.post("/webhook", event)
        return version


def _points(truth: NDArray[np.bool_], clicks: str, task: int) -> list[dict[str, Any]]:
    height, width = truth.shape
    rows, columns = np.nonzero(truth)
    middle = 100 * (columns.mean() + 0.5) / width, 100 * (rows.mean() + 0.5) / height
    found, aside = [], 0.0
    for number, kind in enumerate(clicks):
        x, y = middle
        if kind == "-":
            x, y = 1.0 + number, 1.0
        elif kind == "+":
            x, aside = x + aside, aside + 5.0
        else:
            x = found[-1]["value"]["x"] + 0.2
        found.append(
            {
                "id": f"{task}-{number}",
                "type": "keypointlabels",
                "from_name": "kp",
                "to_name": "image",
                "value": {"x": x, "y": y, "width": 0.3, "keypointlabels": ["Object"]},
                "is_positive": kind != "-",
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
            }
        )
    return found
