from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import requests
from numpy.typing import NDArray

from lidiv_backend.labelstudio.config import parse_label_config
from lidiv_backend.labelstudio.connect import recommended_label_config
from lidiv_backend.labelstudio.requests import Context
from lidiv_backend.labelstudio.results import read_prompts, read_saved_regions
from lidiv_backend.labelstudio.rle import encode_mask
from lidiv_backend.records import AnnotatedImage
from lidiv_backend.simulate_lab.annotator import AnnotatorError, SimulatedAnnotator
from tests.learning.lab import region
from tests.tiny import PaintedSet

CONFIG = parse_label_config(recommended_label_config(("Object",)))
IMAGE = PaintedSet(count=2)[0]


class LabelStudio:
    """Answers clicks by the masks it is given, in turn, and keeps what is submitted."""

    def __init__(self, *masks: NDArray[np.bool_]) -> None:
        self.masks = list(masks)
        self.clicks: list[Any] = []
        self.saved: list[Any] = []

    def request(
        self, method: str, url: str, *, timeout: float, json: Any = None, params: Any = None
    ) -> requests.Response:
        assert url.startswith("http://labels.test/api/")
        if method == "GET":
            # Three tasks, two on a page.
            first = 2 * (params["page"] - 1)
            tasks = [{"id": n, "data": {"image": f"{n}.png"}, "more": 1} for n in (7, 8, 9)]
            return _reply({"tasks": tasks[first : first + 2], "total": 3})
        if url.endswith("/api/ml/5/interactive-annotating"):
            self.clicks.append(json["context"]["result"])
            found = [] if not self.masks else region(self.masks.pop(0), identity="answer")
            return _reply({"data": {"result": found, "model_version": "v"}})
        assert url.endswith("/api/tasks/9/annotations")
        self.saved.append(json["result"])
        return _reply({"id": 1})


def _reply(body: Any) -> requests.Response:
    reply = requests.Response()
    reply.status_code = 200
    reply._content = json.dumps(body).encode()
    return reply


def annotator(label_studio: LabelStudio, **options: int) -> SimulatedAnnotator:
    made = SimulatedAnnotator(
        url="http://labels.test", token="t", backend=5, config=CONFIG, label="Object", **options
    )
    made._session.request = label_studio.request  # type: ignore[method-assign,assignment]
    return made


def only_first() -> AnnotatedImage:
    return dataclasses.replace(IMAGE, objects=IMAGE.objects[:1])


def test_it_clicks_where_the_mask_is_wrong_and_accepts_what_is_good() -> None:
    truth = IMAGE.objects[0].mask
    half = truth & (np.arange(truth.shape[1]) < np.flatnonzero(truth.any(0)).mean())
    label_studio = LabelStudio(half, truth)
    (made,) = annotator(label_studio).annotate(9, only_first())
    assert (made.clicks, made.brushed, made.iou) == (2, False, 1.0)
    # The backend reads the clicks as it reads those of a browser.
    context = Context.model_validate({"result": label_studio.clicks[1]})
    (prompt,) = read_prompts(context.result, CONFIG)
    height, width = truth.shape
    first, second = (click.in_pixels(height=height, width=width) for click in prompt.clicks)
    assert truth[round(first.y), round(first.x)]
    assert (truth & ~half)[round(second.y), round(second.x)]
    (saved,) = read_saved_regions(label_studio.saved[0]).regions
    assert saved.id == "answer"
    np.testing.assert_array_equal(saved.mask, truth)


def test_what_stays_wrong_is_corrected_with_the_brush_and_keeps_its_region() -> None:
    truth = IMAGE.objects[0].mask
    wrong = np.roll(truth, 12, axis=1)
    label_studio = LabelStudio(wrong, wrong)
    (made,) = annotator(label_studio, max_clicks=2).annotate(9, only_first())
    assert (made.clicks, made.brushed) == (2, True)
    (saved,) = read_saved_regions(label_studio.saved[0]).regions
    assert saved.id == "answer"
    np.testing.assert_array_equal(saved.mask, truth)


def test_with_the_brush_alone_nothing_is_clicked() -> None:
    label_studio = LabelStudio()
    made = annotator(label_studio, max_clicks=0).annotate(9, IMAGE)
    assert [each.clicks for each in made] == [0, 0]
    regions = read_saved_regions(label_studio.saved[0]).regions
    assert len({found.id for found in regions}) == 2
    for found, item in zip(regions, IMAGE.objects, strict=True):
        assert encode_mask(found.mask) == encode_mask(item.mask)
        assert found.labels == ("Object",)


def test_an_answer_without_a_mask_is_told() -> None:
    with pytest.raises(AnnotatorError, match="no mask"):
        annotator(LabelStudio()).annotate(9, IMAGE)


def test_tasks_are_listed_page_by_page() -> None:
    found = annotator(LabelStudio()).tasks(3)
    assert [(task.id, task.data["image"]) for task in found] == [
        (7, "7.png"), (8, "8.png"), (9, "9.png"),
    ]  # fmt: skip
    assert {task.total_annotations for task in found} == {0}
