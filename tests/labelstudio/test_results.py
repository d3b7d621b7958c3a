from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from label_studio_sdk.converter.brush import mask2rle

from lidiv_backend.errors import BadClickError, BadRequestError
from lidiv_backend.labelstudio.config import (
    LabelConfig,
    LabelConfigError,
    UnknownLabelError,
    parse_label_config,
)
from lidiv_backend.labelstudio.requests import Context, PredictRequest, Task, parse
from lidiv_backend.labelstudio.results import (
    PlacedClick,
    Prompt,
    read_prompts,
    read_saved_regions,
    read_task_prompts,
)
from tests.labelstudio import golden

LABELS = parse_label_config(golden.label_config("labels"))
BRUSH_LABELS = parse_label_config(golden.label_config("brushlabels"))


def keypoint(id: str = "a", x: object = 50.0, y: object = 50.0, **fields: Any) -> dict[str, Any]:
    value = {"x": x, "y": y, "width": 0.3, "keypointlabels": [fields.pop("label", "Object")]}
    return {
        "id": id,
        "type": "keypointlabels",
        "from_name": "kp",
        "to_name": "image",
        "value": value,
        "original_width": 512,
        "original_height": 512,
        "image_rotation": 0,
    } | fields


def prompts(*results: dict[str, Any], config: LabelConfig = BRUSH_LABELS) -> tuple[Prompt, ...]:
    return read_prompts(parse(Context, {"result": list(results)}).result, config)


@pytest.mark.parametrize(
    ("name", "config", "labels_tag"),
    [
        ("browser_interactive_accept_off", BRUSH_LABELS, None),
        ("browser_interactive_labels_keypoint_config", LABELS, "label"),
    ],
)
def test_recorded_sessions_give_each_click_once(
    name: str, config: LabelConfig, labels_tag: str | None
) -> None:
    for count, request in enumerate(golden.load(name), start=1):
        (prompt,) = read_prompts(parse(Context, request["context"]).result, config)
        assert len(prompt.clicks) == count
        assert [click.positive for click in prompt.clicks] == [True, True, False][:count]
        assert (prompt.target.label, prompt.target.labels) == ("Object", labels_tag)
        assert prompt.size == (512, 512)
        assert prompt.clicks[0].x == pytest.approx(42.98941798941799)


def test_a_recorded_rectangle_is_no_click() -> None:
    body = golden.load("backend_predict_interactive_rectangle")["body"]
    request = parse(PredictRequest, body)
    assert request.params.context is not None
    assert read_prompts(request.params.context.result, LABELS) == ()


def test_a_click_is_positive_unless_it_says_otherwise() -> None:
    (prompt,) = prompts(
        keypoint("a"), keypoint("b", is_positive=False), keypoint("c", is_positive=None)
    )
    assert [click.positive for click in prompt.clicks] == [True, False, True]


def test_without_a_picked_label_the_click_stands_alone() -> None:
    lone = keypoint("a", type="keypoint")
    lone["value"] = {"x": 1, "y": 2, "labels": []}
    (prompt,) = prompts(lone, config=LABELS)
    assert prompt.target.label is None


def test_the_label_of_the_latest_click_comes_last() -> None:
    first, second = prompts(
        keypoint("a", label="Other"), keypoint("b"), keypoint("c", label="Other", x=10)
    )
    assert [first.target.label, second.target.label] == ["Object", "Other"]
    assert [click.id for click in second.clicks] == ["a", "c"]


@pytest.mark.parametrize(
    ("x", "y", "size", "pixel"),
    [
        # The centre of the first pixel is (0, 0), its corner at 0 %.
        (0.0, 0.0, (4, 10), (0.0, 0.0)),
        (5.0, 12.5, (4, 10), (0.0, 0.0)),
        (15.0, 37.5, (4, 10), (1.0, 1.0)),
        (100.0, 100.0, (4, 10), (9.0, 3.0)),
        (50.0, 50.0, (1, 1), (0.0, 0.0)),
    ],
)
def test_per_cent_become_pixels_from_centres(
    x: float, y: float, size: tuple[int, int], pixel: tuple[float, float]
) -> None:
    click = PlacedClick(id="", x=x, y=y, positive=True)
    placed = click.in_pixels(height=size[0], width=size[1])
    assert (placed.x, placed.y) == pytest.approx(pixel)


@pytest.mark.parametrize(
    ("x", "y"),
    [(100.1, 50), (50, -0.1), (float("nan"), 50), (50, float("inf")), (None, 50), (1e300, 1)],
)
def test_a_click_that_no_image_can_take_is_refused(x: object, y: object) -> None:
    with pytest.raises(BadClickError, match="Click 2"):
        prompts(keypoint("a"), keypoint("b", x=x, y=y))


def test_rounding_in_the_browser_is_forgiven() -> None:
    (prompt,) = prompts(keypoint(x=100.00000000000001, y=-1e-14))
    assert prompt.clicks[0].in_pixels(height=8, width=8).x == 7.0


def test_a_click_that_is_no_number_is_refused() -> None:
    with pytest.raises(BadRequestError, match=r"result.0.value.x"):
        prompts(keypoint(x="here"))


def test_unknown_labels_and_images_are_refused() -> None:
    with pytest.raises(UnknownLabelError, match="Unicorn"):
        prompts(keypoint(label="Unicorn"))
    with pytest.raises(LabelConfigError, match="elsewhere"):
        prompts(keypoint(to_name="elsewhere"))


def test_a_turned_image_is_refused() -> None:
    with pytest.raises(BadRequestError, match="turned by 90"):
        prompts(keypoint(image_rotation=90))


def task(**fields: Any) -> Task:
    return parse(Task, {"id": 1, "data": {}} | fields)


def test_key_points_of_a_task_come_from_its_newest_source() -> None:
    brought = task(
        predictions=[{"result": [keypoint("p")]}],
        annotations=[{"result": [keypoint("a")]}, {"result": [keypoint("b")]}],
        drafts=[],
    )
    (prompt,) = read_task_prompts(brought, BRUSH_LABELS)
    assert [click.id for click in prompt.clicks] == ["b"]


def test_key_points_that_do_not_ask_a_backend_are_landmarks() -> None:
    plain = parse_label_config(
        golden.label_config("brushlabels").replace('smart="true" smartOnly="true"', "")
    )
    assert read_task_prompts(task(annotations=[{"result": [keypoint()]}]), plain) == ()


@pytest.mark.parametrize(
    "annotations",
    [
        None,
        "text",
        [None, 5, {"result": None}, {"result": "x"}, {}],
        [{"result": [None, 7, {"type": "brushlabels", "value": {"rle": [1, 2, 3]}}]}],
        # The bogus key point that holds the brush's mask.
        [{"result": golden.load("saved_result_brushlabels_keypointlabels")}],
        [{"result": golden.load("saved_result_wrongsize")}],
    ],
)
def test_damaged_annotations_do_not_stop_a_batch(annotations: object) -> None:
    assert read_task_prompts(task(annotations=annotations), BRUSH_LABELS) == ()


def brush(id: str, mask: np.ndarray[Any, Any], **fields: Any) -> dict[str, Any]:
    height, width = mask.shape
    return {
        "id": id,
        "type": "brushlabels",
        "to_name": "image",
        "original_width": width,
        "original_height": height,
        "value": {"format": "rle", "rle": mask2rle(mask.astype(np.uint8) * 255)}
        | {"brushlabels": ["Object"]},
    } | fields


def test_saved_regions_of_both_configurations_are_read() -> None:
    mask = np.eye(6, 9, dtype=bool)
    labelled = brush("a", mask)
    plain = brush("b", ~mask, type="brush")
    del plain["value"]["brushlabels"]
    label = brush("b", ~mask, type="labels")
    label["value"]["labels"] = ["Other"]
    saved = read_saved_regions([labelled, plain, label])
    assert saved.skipped == ()
    first, second = saved.regions
    assert (first.id, first.labels, second.id, second.labels) == (
        ("a", ("Object",), "b", ("Other",))
    )
    np.testing.assert_array_equal(first.mask, mask)
    np.testing.assert_array_equal(second.mask, ~mask)


def test_the_bogus_key_point_of_a_recorded_annotation_is_no_second_region() -> None:
    saved = read_saved_regions(golden.load("saved_result_brushlabels_keypointlabels"))
    assert [(region.id, region.labels) for region in saved.regions] == [("3b99c0b4", ("Object",))]
    assert saved.skipped == ()


@pytest.mark.parametrize(
    ("results", "reason"),
    [
        (golden.load("saved_result_badrle"), "malformed"),
        (golden.load("saved_result_wrongsize"), "values"),
        ([brush("a", np.ones((2, 2))) | {"original_width": None}], "how large"),
        ([brush("a", np.ones((2, 2))), brush("a", np.ones((2, 2)))], "taken"),
        ([{"type": "brush", "id": "a", "original_width": 1, "original_height": 1}], "bytes"),
        ([5], "Result 1"),
    ],
)
def test_an_unreadable_region_is_skipped_with_its_reason(
    results: list[dict[str, Any]], reason: str
) -> None:
    good = brush("good", np.ones((3, 3), dtype=bool))
    saved = read_saved_regions([*results, good])
    assert saved.regions[-1].id == "good"
    assert len(saved.skipped) == 1
    assert reason in saved.skipped[0]


def test_an_annotation_without_results_has_no_regions() -> None:
    assert read_saved_regions(None).regions == ()
