"""A simulated annotator, who talks to Label Studio as its interface does.

Every click goes through Label Studio to the backend and comes back as a mask; the next one is
placed where that mask is wrong. A mask that is good enough is accepted as it is, with the id of
its region; one that is still wrong after some clicks is accepted and corrected with the brush.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import requests
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from lidiv_backend.clicks import Click
from lidiv_backend.errors import LidivError
from lidiv_backend.evaluation.protocols import intersection_over_union
from lidiv_backend.labelstudio.config import LabelConfig
from lidiv_backend.labelstudio.rle import decode_mask, encode_mask
from lidiv_backend.records import AnnotatedImage, ObjectMask
from lidiv_backend.training.simulation import centre_click

#: Clicks on an object before the brush is taken.
MAX_CLICKS = 5
#: The least IoU that an annotator is content with; each object draws its own.
CONTENT = (0.85, 0.9)
_SECONDS = 120.0


@dataclass(frozen=True, kw_only=True)
class Made:
    """What an annotator did to one object.

    Parameters
    ----------
    clicks
        How many.
    iou
        Of the mask when they were content with it, or took the brush.
    brushed
        Whether the mask was corrected by hand.
    """

    clicks: int
    iou: float
    brushed: bool


class OpenTask(BaseModel):
    """A task as Label Studio lists it.

    Parameters
    ----------
    id
        Label Studio's number.
    data
        With the image's address.
    total_annotations
        How many annotations it has.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: int
    data: Mapping[str, Any]
    total_annotations: int = 0


class AnnotatorError(LidivError):
    """Label Studio answered something else than an annotator can use."""

    kind = "annotator"


class SimulatedAnnotator:
    """Segments objects through Label Studio's API.

    Parameters
    ----------
    url, token
        Label Studio's address, and a legacy token of the annotator's.
    backend
        Label Studio's number of the backend.
    config
        The project's label configuration.
    label
        Of all objects.
    max_clicks
        Clicks on an object before the brush is taken; 0 for the brush alone.
    """

    def __init__(
        self,
        *,
        url: str,
        token: str,
        backend: int,
        config: LabelConfig,
        label: str,
        max_clicks: int = MAX_CLICKS,
    ) -> None:
        self._url = url.rstrip("/")
        self._session = requests.Session()
        self._session.headers["Authorization"] = f"Token {token}"
        self._backend = backend
        self._tags = config.images[0]
        self._target = self._tags.target(label)
        self._max_clicks = max_clicks

    def tasks(self, project: int) -> list[OpenTask]:
        """List a project's tasks.

        Parameters
        ----------
        project
            Label Studio's number.
        """
        found: list[OpenTask] = []
        page = 1
        while True:
            reply = self._call(
                "GET",
                "/api/tasks",
                params={"project": project, "page": page, "page_size": 100, "fields": "task_only"},
            )
            found += [OpenTask.model_validate(task) for task in reply["tasks"]]
            if not reply["tasks"] or len(found) >= reply["total"]:
                return found
            page += 1

    def annotate(self, task: int, image: AnnotatedImage) -> list[Made]:
        """Segment the objects of an image and submit them as one annotation.

        Parameters
        ----------
        task
            Label Studio's number of the image's task.
        image
            The image, with the objects that are wanted.

        Returns
        -------
        list of Made
            What it took.

        Raises
        ------
        AnnotatorError
            If an answer to a click is no mask.
        """
        results: list[dict[str, Any]] = []
        made = []
        for number, item in enumerate(image.objects):
            region, done = self._segment(task, item, f"{task}-{number}")
            results += region
            made.append(done)
        clicks = sum(done.clicks for done in made)
        self._post(f"/api/tasks/{task}/annotations", result=results, lead_time=2.0 * clicks)
        return made

    def timed_click(self, task: int, click: Click, shape: tuple[int, ...]) -> float:
        """Make one click, accept nothing, and give the seconds until the mask was there.

        Parameters
        ----------
        task
            Label Studio's number of the image's task.
        click
            Where.
        shape
            Height and width of the image.
        """
        began = time.perf_counter()
        self._answer(task, [click], f"timed-{click.x:g}-{click.y:g}", shape)
        return time.perf_counter() - began

    def _segment(self, task: int, item: ObjectMask, name: str) -> tuple[list[dict[str, Any]], Made]:
        content = np.random.default_rng(zlib.crc32(item.name.encode())).uniform(*CONTENT)
        clicks: list[Click] = []
        shown = np.zeros_like(item.mask)
        answer: list[dict[str, Any]] = []
        iou = 0.0
        while len(clicks) < self._max_clicks:
            click = centre_click(item.mask, shown, clicks, item.ignore)
            if click is None:
                break
            clicks.append(click)
            answer = self._answer(task, clicks, name, shown.shape)
            shown = _mask_of(answer, shown.shape)
            iou = intersection_over_union(shown, item.mask, item.ignore)
            if iou >= content:
                return answer, Made(clicks=len(clicks), iou=iou, brushed=False)
        return self._brushed(item.mask, answer, name), Made(
            clicks=len(clicks), iou=iou, brushed=True
        )

    # Not by the SDK's client, which throws away what the backend answered.
    def _answer(
        self, task: int, clicks: Sequence[Click], name: str, shape: tuple[int, ...]
    ) -> list[dict[str, Any]]:
        results = [
            result
            for number, click in enumerate(clicks)
            for result in self._point(click, f"{name}-{number}", shape)
        ]
        reply = self._post(
            f"/api/ml/{self._backend}/interactive-annotating",
            task=task,
            context={"result": results},
        )
        data = reply.get("data")
        answer = data.get("result") if isinstance(data, dict) else None
        if not answer:
            raise AnnotatorError(
                "A click brought no mask.", remedy="The backend's page lists the last failures."
            )
        return list(answer)

    def _post(self, path: str, **body: Any) -> dict[str, Any]:
        return self._call("POST", path, json=body)

    def _call(self, method: str, path: str, **content: Any) -> dict[str, Any]:
        try:
            reply = self._session.request(method, f"{self._url}{path}", timeout=_SECONDS, **content)
            reply.raise_for_status()
            return dict(reply.json())
        except (requests.RequestException, TypeError, ValueError) as error:
            raise AnnotatorError(
                f"Label Studio did not answer {path} as expected: {error}.",
                remedy="Its log says more.",
            ) from error

    def _point(self, click: Click, id: str, shape: tuple[int, ...]) -> list[dict[str, Any]]:
        height, width = shape
        shared = {
            "id": id,
            "to_name": self._tags.name,
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "is_positive": click.positive,
            "origin": "manual",
        }
        value = {
            "x": 100 * (click.x + 0.5) / width,
            "y": 100 * (click.y + 0.5) / height,
            "width": 0.26,
            "labels": [self._target.label],
        }
        point = {"from_name": min(self._tags.smart_keypoints), "type": "keypoint", "value": value}
        label = {"from_name": self._target.labels, "type": "labels", "value": value}
        return [shared | point, shared | label]

    def _brushed(
        self, mask: NDArray[np.bool_], answer: list[dict[str, Any]], name: str
    ) -> list[dict[str, Any]]:
        """The region as the brush leaves it: the mask is another one, the id stays."""
        rle = encode_mask(mask)
        if answer:
            return [result | {"value": result["value"] | {"rle": rle}} for result in answer]
        height, width = mask.shape
        shared = {
            "id": f"brush-{name}",
            "to_name": self._tags.name,
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "origin": "manual",
        }
        value = {"format": "rle", "rle": rle}
        return [
            shared | {"from_name": self._target.brush, "type": "brush", "value": value},
            shared
            | {
                "from_name": self._target.labels,
                "type": "labels",
                "value": value | {"labels": [self._target.label]},
            },
        ]


def _mask_of(answer: Sequence[dict[str, Any]], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    height, width = shape
    return decode_mask(answer[0]["value"]["rle"], height=height, width=width)
