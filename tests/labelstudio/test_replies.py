from __future__ import annotations

from typing import Any

import numpy as np
from label_studio_sdk.converter.brush import decode_rle
from label_studio_sdk.label_interface import LabelInterface

from lidiv_backend.labelstudio.config import parse_label_config
from lidiv_backend.labelstudio.replies import Prediction, Region
from lidiv_backend.labelstudio.results import read_saved_regions
from tests.labelstudio import golden

MASK = np.zeros((20, 30), dtype=bool)
MASK[5:15, 10:25] = True


def region(kind: str, label: str | None = "Object") -> Region:
    target = parse_label_config(golden.label_config(kind)).images[0].target(label)
    return Region.of_mask(MASK, id="r1", target=target, score=0.75, text="proposal 2 of 5")


def prediction(kind: str) -> dict[str, Any]:
    return Prediction(model_version="v1", regions=(region(kind),)).as_json()


def test_labels_of_the_brush_itself_make_one_result() -> None:
    body = prediction("brushlabels")
    assert (body["score"], body["model_version"]) == (0.75, "v1")
    (result,) = body["result"]
    rle = result["value"].pop("rle")
    assert result == {
        "id": "r1",
        "from_name": "brush",
        "to_name": "image",
        "type": "brushlabels",
        "original_width": 30,
        "original_height": 20,
        "image_rotation": 0,
        "value": {"format": "rle", "brushlabels": ["Object"]},
        "score": 0.75,
        "origin": "prediction",
        "readonly": False,
        "meta": {"text": ["proposal 2 of 5"]},
    }
    np.testing.assert_array_equal(decode_rle(rle).reshape(20, 30, 4)[..., 3] == 255, MASK)


def test_labels_of_their_own_make_two_results_with_one_id() -> None:
    brush, label = prediction("labels")["result"]
    assert (brush["type"], brush["from_name"]) == ("brush", "brush")
    assert (label["type"], label["from_name"]) == ("labels", "label")
    assert brush["id"] == label["id"] == "r1"
    assert set(brush["value"]) == {"format", "rle"}
    assert label["value"] == brush["value"] | {"labels": ["Object"]}


def test_a_region_may_have_no_label() -> None:
    (only,) = region("labels", None).as_results()
    assert only["type"] == "brush"


def test_label_studios_own_validation_accepts_both() -> None:
    for kind in ("brushlabels", "labels"):
        interface = LabelInterface(golden.label_config(kind))
        assert interface.validate_prediction(prediction(kind), return_errors=True) == []


def test_what_is_sent_is_what_is_read_when_it_was_accepted() -> None:
    for kind in ("brushlabels", "labels"):
        (saved,) = read_saved_regions(prediction(kind)["result"]).regions
        assert (saved.id, saved.labels) == ("r1", ("Object",))
        np.testing.assert_array_equal(saved.mask, MASK)


def test_a_prediction_without_regions_is_valid() -> None:
    assert Prediction(model_version="v1").as_json() == {
        "result": [],
        "score": 0.0,
        "model_version": "v1",
    }
