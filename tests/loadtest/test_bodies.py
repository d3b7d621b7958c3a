"""What annotators who are played send, beside what a real Label Studio sent."""

from __future__ import annotations

from typing import Any

import numpy as np

from lidiv_backend.labelstudio.config import parse_label_config
from lidiv_backend.labelstudio.connect import recommended_label_config
from lidiv_backend.labelstudio.requests import PredictRequest, WebhookEvent, parse
from lidiv_backend.labelstudio.results import read_prompts, read_saved_regions
from lidiv_backend.labelstudio.rle import encode_mask
from lidiv_backend.loadtest.bodies import (
    PROJECT,
    PlayedClick,
    PlayedTask,
    predict_body,
    submitted_body,
)
from tests.labelstudio import golden

CONFIG = recommended_label_config()
CLICKS = (
    PlayedClick(id="EUh2o0fB_D", x=42.98941798941799, y=19.973544973544975),
    PlayedClick(id="Z1qzQnVZLq", x=55.026455026455025, y=19.973544973544975),
    PlayedClick(id="DnIVev_vcW", x=48.94179894179894, y=19.973544973544975, positive=False),
)


def task() -> PlayedTask:
    return PlayedTask(number=1, image="/data/upload/1/17.jpg", width=512, height=512)


def accepted() -> list[dict[str, Any]]:
    """A region as the backend answers it: a brush's half and the label's."""
    mask = np.zeros((512, 512), dtype=bool)
    mask[100:200, 50:90] = True
    rle = {"format": "rle", "rle": encode_mask(mask)}
    common = {"id": "r1", "to_name": "image", "original_width": 512, "original_height": 512}
    return [
        common | {"from_name": "brush", "type": "brush", "value": rle},
        common | {"from_name": "label", "type": "labels", "value": rle | {"labels": ["Object"]}},
    ]


def assert_alike(ours: Any, recorded: Any, where: str = "") -> None:
    """The same fields, in the same order, of the same kinds."""
    if isinstance(recorded, dict) and where.rpartition(".")[2] != "data":
        assert list(ours) == list(recorded), where
        for key in recorded:
            assert_alike(ours[key], recorded[key], f"{where}.{key}")
    elif isinstance(recorded, list) and recorded and ours:
        assert_alike(ours[0], recorded[0], f"{where}[]")
    elif not isinstance(recorded, list):
        assert isinstance(ours, int | float if isinstance(recorded, float) else type(recorded)), (
            where
        )


def test_clicks_are_those_that_a_browser_sent() -> None:
    recorded = golden.load("browser_interactive_labels_keypoint_config")
    for count, session in enumerate(recorded, start=1):
        body = predict_body(task(), CLICKS[:count], CONFIG)
        ours = body["params"]["context"]["result"]
        for mine, theirs in zip(ours, session["context"]["result"], strict=True):
            assert mine | {"value": {}} == theirs | {"value": {}}
            for name in ("x", "y", "labels"):
                assert mine["value"][name] == theirs["value"][name]
            assert list(mine["value"]) == list(theirs["value"])


def test_a_click_has_the_fields_of_a_recorded_one() -> None:
    recorded = golden.load("backend_predict_interactive_rectangle")["body"]
    ours = predict_body(task(), CLICKS, CONFIG)
    recorded["params"]["context"] = ours["params"]["context"]
    assert_alike(ours, recorded)
    # The balancer looks for the task's number right at the beginning.
    assert next(iter(ours)) == "tasks"
    assert next(iter(ours["tasks"][0])) == "id"


def test_the_server_reads_the_clicks() -> None:
    body = predict_body(task(), CLICKS, CONFIG)
    request = parse(PredictRequest, body)
    assert request.params.context is not None
    (prompt,) = read_prompts(request.params.context.result, parse_label_config(CONFIG))
    assert [click.positive for click in prompt.clicks] == [True, True, False]
    assert prompt.size == (512, 512)


def test_the_body_grows_with_what_was_accepted() -> None:
    open_task = task()
    open_task.accepted += accepted()
    (sent,) = predict_body(open_task, CLICKS, CONFIG)["tasks"]
    (draft,) = sent["drafts"]
    assert draft["result"] == open_task.accepted


def test_a_submit_has_the_fields_of_a_recorded_one_and_is_read() -> None:
    open_task = task()
    open_task.accepted += accepted()
    body = submitted_body(
        open_task, annotation=10_001, annotator=3, seconds=12.5, label_config=CONFIG
    )
    recorded = golden.load("backend_webhook_ANNOTATION_CREATED")["body"]
    assert list(body) == list(recorded)
    assert_alike(body["annotation"] | {"result": []}, recorded["annotation"] | {"result": []})
    for part in ("project", "task"):
        assert set(body[part]) <= set(recorded[part])
    event = parse(WebhookEvent, body)
    assert event.project is not None
    assert event.annotation is not None
    assert event.project.key == PROJECT
    (region,) = read_saved_regions(event.annotation.result).regions
    assert region.mask.sum() == 100 * 40
