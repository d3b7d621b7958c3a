"""Rectangles, copies of accepted regions and overlays, each asked for by extra parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from label_studio_sdk.converter.brush import decode_rle, mask2rle
from numpy.typing import NDArray

from lidiv_backend.labelstudio.rle import decode_mask
from lidiv_backend.server.app import backend_of
from tests.fake_engine import FakeEngine, disk_mask
from tests.labelstudio import golden

RECTANGLE = golden.load("backend_predict_interactive_rectangle")["body"]
CLICKS = golden.load("backend_predict_interactive")["body"]
SETUP = golden.load("backend_setup")["body"]


def ask_for(client: FlaskClient, **extra_params: Any) -> None:
    """Connect the project, as Label Studio does."""
    answer = client.post("/setup", json=SETUP | {"extra_params": extra_params})
    assert answer.status_code == 200, answer.get_data(as_text=True)


def with_context(recorded: dict[str, Any], *results: Any, **task: Any) -> dict[str, Any]:
    request = copy.deepcopy(recorded)
    request["params"]["context"] = {"result": list(results)}
    request["tasks"][0] |= task
    return request


def click(x: float, y: float, *, id: str, positive: bool = True) -> list[dict[str, Any]]:
    """The two results of a point with <Labels>, on the recorded rectangle's project."""
    shared = {
        "original_width": 512,
        "original_height": 512,
        "image_rotation": 0,
        "value": {"x": x, "y": y, "width": 0.26, "labels": ["Object"]},
        "is_positive": positive,
        "id": id,
        "to_name": "image",
        "origin": "manual",
    }
    return [
        shared | {"from_name": "kp", "type": "keypoint"},
        shared | {"from_name": "label", "type": "labels"},
    ]


def box(x: float, y: float, width: float, height: float, *, id: str) -> list[dict[str, Any]]:
    recorded = copy.deepcopy(RECTANGLE["params"]["context"]["result"])
    for result in recorded:
        result["id"] = id
        result["value"] |= {"x": x, "y": y, "width": width, "height": height}
    return list(recorded)


def brush(mask: NDArray[np.bool_], *, id: str, label: str = "Object") -> dict[str, Any]:
    rle = mask2rle(mask.astype(np.uint8) * 255)
    return {
        "id": id,
        "type": "brushlabels",
        "from_name": "brush",
        "to_name": "image",
        "original_width": 512,
        "original_height": 512,
        "image_rotation": 0,
        "value": {"format": "rle", "rle": rle, "brushlabels": [label]},
    }


def answer(client: FlaskClient, content: Any) -> list[dict[str, Any]]:
    """The regions that are shown; of two results with one id the brush."""
    response = client.post("/predict", json=content)
    assert response.status_code == 200, response.get_data(as_text=True)
    results = response.get_json()["results"][0]["result"]
    return [each for each in results if each["type"] in ("brush", "brushlabels")]


def mask_of(result: dict[str, Any]) -> NDArray[np.bool_]:
    alpha: NDArray[np.bool_] = decode_rle(result["value"]["rle"]).reshape(512, 512, 4)[..., 3] > 0
    return alpha


# --- Rectangles ----------------------------------------------------------------------------------


def test_the_recorded_rectangle_asks_for_what_is_inside(app: Flask) -> None:
    client = app.test_client()
    ask_for(client, rectangles=True)
    (region,) = answer(client, RECTANGLE)
    mask = mask_of(region)
    rows, columns = np.nonzero(mask)
    value = RECTANGLE["params"]["context"]["result"][0]["value"]
    left, top = value["x"] * 5.12, value["y"] * 5.12
    assert left - 1 <= columns.min() < columns.max() <= left + value["width"] * 5.12 + 1
    assert top - 1 <= rows.min() < rows.max() <= top + value["height"] * 5.12 + 1
    assert region["meta"] == {"text": ["proposal 1 of 4"]}
    # What the model was told is kept, so that it can be learnt from.
    kept = backend_of(app).store.answer(region["id"])
    assert kept is not None
    assert [each.positive for each in kept.clicks] == [True, False, False, False, False]


def test_a_click_inside_a_rectangle_refines_its_mask(app: Flask, engine: FakeEngine) -> None:
    client = app.test_client()
    ask_for(client, rectangles=True)
    (before,) = answer(client, with_context(RECTANGLE, *box(30, 30, 40, 40, id="box")))
    remove = click(50, 50, id="no", positive=False)
    (after,) = answer(client, with_context(RECTANGLE, *remove))
    np.testing.assert_array_equal(engine.calls[-1][1], mask_of(before))
    assert not mask_of(after)[255, 255]
    assert before["id"] != after["id"]
    # The same points are sent again with the next one; what it began with stays.
    more = click(40, 50, id="yes")
    (third,) = answer(client, with_context(RECTANGLE, *remove, *more))
    np.testing.assert_array_equal(engine.calls[-1][1], mask_of(after))
    assert len(engine.calls[-1][0]) == 5 + 2
    kept = backend_of(app).store.answer(third["id"])
    assert kept is not None
    assert [each.id for each in kept.clicks] == ["", "", "", "", "", "no", "yes"]


def test_a_click_elsewhere_has_nothing_to_do_with_the_rectangle(
    app: Flask, engine: FakeEngine
) -> None:
    client = app.test_client()
    ask_for(client, rectangles=True)
    answer(client, with_context(RECTANGLE, *box(30, 30, 40, 40, id="box")))
    answer(client, with_context(RECTANGLE, *click(10, 10, id="far")))
    assert (len(engine.calls[-1][0]), engine.calls[-1][1]) == (1, None)


def test_every_rectangle_gets_its_mask_and_keeps_it_while_one_is_refined(app: Flask) -> None:
    client = app.test_client()
    ask_for(client, rectangles=True)
    boxes = [*box(5, 5, 30, 30, id="one"), *box(60, 60, 30, 30, id="two")]
    one, two = answer(client, with_context(RECTANGLE, *boxes))
    assert not (mask_of(one) & mask_of(two)).any()
    refine = click(20, 20, id="no", positive=False)
    kept, refined = answer(client, with_context(RECTANGLE, *refine))
    assert kept == two
    assert not mask_of(refined)[102, 102]


def test_rectangles_that_are_gone_are_forgotten(app: Flask, engine: FakeEngine) -> None:
    client = app.test_client()
    ask_for(client, rectangles=True)
    answer(client, with_context(RECTANGLE, *box(30, 30, 40, 40, id="box")))
    assert answer(client, with_context(RECTANGLE)) == []
    answer(client, with_context(RECTANGLE, *click(50, 50, id="new")))
    assert engine.calls[-1][1] is None


def as_draft(*accepted: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"result": [brush(mask_of(each), id=each["id"]) for each in accepted]}]


@pytest.mark.parametrize("refined", [False, True])
def test_a_rectangle_whose_mask_was_accepted_is_done_with(
    app: Flask, engine: FakeEngine, refined: bool
) -> None:
    client = app.test_client()
    ask_for(client, rectangles=True)
    boxes = [*box(10, 10, 80, 80, id="around"), *box(60, 60, 20, 20, id="inside")]
    accepted = answer(client, with_context(RECTANGLE, *boxes))
    if refined:
        accepted = answer(client, with_context(RECTANGLE, *click(55, 55, id="more")))
    assert len(accepted) == 2
    # Label Studio takes the rectangles away without a word.
    new = with_context(RECTANGLE, *click(14, 14, id="new"), drafts=as_draft(*accepted))
    (region,) = answer(client, new)
    assert (len(engine.calls[-1][0]), engine.calls[-1][1]) == (1, None)
    assert region["id"] not in [each["id"] for each in accepted]


def test_a_mask_that_was_accepted_is_not_shown_beside_another_one(
    app: Flask, engine: FakeEngine
) -> None:
    client = app.test_client()
    ask_for(client, rectangles=True)
    boxes = [*box(5, 5, 30, 30, id="one"), *box(60, 60, 30, 30, id="two")]
    one, two = answer(client, with_context(RECTANGLE, *boxes))
    refine = click(20, 20, id="no", positive=False)
    (_,) = answer(client, with_context(RECTANGLE, *refine, drafts=as_draft(two)))
    np.testing.assert_array_equal(engine.calls[-1][1], mask_of(one))


def test_a_rectangle_that_was_moved_waits_again(app: Flask, engine: FakeEngine) -> None:
    client = app.test_client()
    ask_for(client, rectangles=True)
    (accepted,) = answer(client, with_context(RECTANGLE, *box(30, 30, 40, 40, id="box")))
    drafts = as_draft(accepted)
    moved = box(10, 30, 60, 40, id="box")
    (before,) = answer(client, with_context(RECTANGLE, *moved, drafts=drafts))
    refine = click(30, 40, id="no", positive=False)
    (_,) = answer(client, with_context(RECTANGLE, *refine, drafts=drafts))
    np.testing.assert_array_equal(engine.calls[-1][1], mask_of(before))


def test_a_rectangle_is_known_to_every_replica(
    make_app: Callable[..., Flask], engine: FakeEngine
) -> None:
    one, another = (make_app().test_client() for _ in range(2))
    ask_for(one, rectangles=True)
    (before,) = answer(one, with_context(RECTANGLE, *box(30, 30, 40, 40, id="box")))
    remove = click(50, 50, id="no", positive=False)
    (after,) = answer(another, with_context(RECTANGLE, *remove))
    np.testing.assert_array_equal(engine.calls[-1][1], mask_of(before))
    # What it began with, too: meanwhile somebody else has drawn a smaller one there.
    answer(another, with_context(RECTANGLE, *box(45, 45, 10, 10, id="small")))
    again = make_app().test_client()
    assert answer(again, with_context(RECTANGLE, *remove)) == [after]


def test_two_annotators_on_one_task_keep_their_rectangles(app: Flask, engine: FakeEngine) -> None:
    client = app.test_client()
    ask_for(client, rectangles=True)
    (mine,) = answer(client, with_context(RECTANGLE, *box(5, 5, 30, 30, id="mine")))
    (yours,) = answer(client, with_context(RECTANGLE, *box(60, 60, 30, 30, id="yours")))
    # Refining one of them does not show the other's mask.
    for place, before, name in ((20, mine, "a"), (75, yours, "b")):
        point = click(place, place, id=name, positive=False)
        (_,) = answer(client, with_context(RECTANGLE, *point))
        np.testing.assert_array_equal(engine.calls[-1][1], mask_of(before))


@pytest.mark.parametrize(
    "value",
    [
        {"width": 0},
        {"height": -3},
        {"x": None},
        {"x": 120},
        {"width": float("nan")},
        {"rotation": float("inf")},
    ],
)
def test_a_rectangle_that_is_none(app: Flask, value: dict[str, Any]) -> None:
    client = app.test_client()
    ask_for(client, rectangles=True)
    rectangle = box(30, 30, 40, 40, id="box")
    rectangle[0]["value"] |= value
    response = client.post("/predict", json=with_context(RECTANGLE, *rectangle))
    assert (response.status_code, response.get_json()["error"]) == (422, "bad rectangle")


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(values=st.tuples(*[st.floats(-10, 200) | st.just(float("inf"))] * 4), turn=st.floats(-9, 9))
def test_no_rectangle_is_a_defect(app: Flask, values: tuple[float, ...], turn: float) -> None:
    client = app.test_client()
    ask_for(client, rectangles=True)
    rectangle = box(*values, id="box")
    rectangle[0]["value"]["rotation"] = turn * 40
    response = client.post("/predict", json=with_context(RECTANGLE, *rectangle))
    assert response.status_code in (200, 422), response.get_data(as_text=True)


# --- Copies of accepted regions ------------------------------------------------------------------

ACCEPTED = disk_mask(512, 512, 255, 255, 150)


@pytest.mark.parametrize("source", ["drafts", "annotations"])
def test_a_click_in_an_accepted_region_refines_a_copy(
    app: Flask, engine: FakeEngine, source: str
) -> None:
    client = app.test_client()
    ask_for(client, refine_accepted=True)
    accepted = {source: [{"id": 7, "result": [brush(ACCEPTED, id="by hand")]}]}
    point = click(70, 50, id="no", positive=False)
    (region,) = answer(client, with_context(CLICKS, *point, **accepted))
    (clicks, previous), mask = engine.calls[-1], mask_of(region)
    np.testing.assert_array_equal(previous, ACCEPTED)
    # Nobody clicked for it, so a click in its middle stands for it.
    assert [(each.positive, abs(each.x - 255) < 3) for each in clicks[:1]] == [(True, True)]
    assert mask[255, 200]
    assert not mask[255, int(0.7 * 512)]
    assert region["id"] != "by hand"
    assert region["meta"]["text"] == ["proposal 1 of 4, from a copy of the region beneath"]


def test_an_accepted_region_may_be_as_large_as_its_image(
    app: Flask, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = app.test_client()
    ask_for(client, refine_accepted=True)
    # What is decoded where no image says how large it may be.
    monkeypatch.setitem(decode_mask.__kwdefaults__, "max_pixels", 512 * 512 - 1)
    drafts = [{"result": [brush(ACCEPTED, id="by hand")]}]
    answer(client, with_context(CLICKS, *click(70, 50, id="more"), drafts=drafts))
    np.testing.assert_array_equal(engine.calls[-1][1], ACCEPTED)


def test_a_copy_goes_on_with_the_clicks_that_led_to_the_region(
    app: Flask, engine: FakeEngine
) -> None:
    client = app.test_client()
    ask_for(client, refine_accepted=True)
    led = [*click(50, 50, id="a"), *click(60, 60, id="b", positive=False)]
    (first,) = answer(client, with_context(CLICKS, *led))
    brushed = mask_of(first)
    brushed[200:210, 250:260] ^= True
    drafts = [{"result": [brush(brushed, id=first["id"])]}]
    answer(client, with_context(CLICKS, *click(45, 45, id="c"), drafts=drafts))
    clicks, previous = engine.calls[-1]
    assert [each.positive for each in clicks] == [True, False, True]
    np.testing.assert_array_equal(previous, brushed)


def test_what_an_interaction_began_with_stays(app: Flask, engine: FakeEngine) -> None:
    client = app.test_client()
    ask_for(client, refine_accepted=True)
    first, second = click(50, 50, id="a"), click(70, 50, id="b")
    answer(client, with_context(CLICKS, *first))
    # The draft with the region under the first click is only saved now.
    drafts = [{"result": [brush(ACCEPTED, id="late")]}]
    answer(client, with_context(CLICKS, *first, *second, drafts=drafts))
    assert len(engine.calls[-1][0]) == 2


def test_what_an_interaction_began_with_is_known_to_every_replica(
    make_app: Callable[..., Flask], engine: FakeEngine
) -> None:
    one, another = (make_app().test_client() for _ in range(2))
    ask_for(one, refine_accepted=True)
    first, second = click(60, 50, id="a", positive=False), click(70, 50, id="b")
    drafts = [{"result": [brush(ACCEPTED, id="early")]}]
    answer(one, with_context(CLICKS, *first, drafts=drafts))
    # Another one lies on top by now.
    drafts[0]["result"].append(brush(disk_mask(512, 512, 255, 255, 60), id="late"))
    answer(another, with_context(CLICKS, *first, *second, drafts=drafts))
    (clicks, previous), (_, began) = engine.calls[-1], engine.calls[-2]
    assert [len(clicks), began.sum()] == [3, ACCEPTED.sum()]  # type: ignore[union-attr]
    assert previous is not None
    # Once it is gone, there is nothing to begin with.
    third = make_app().test_client()
    answer(third, with_context(CLICKS, *first, *second))
    assert len(engine.calls[-1][0]) == 2


@pytest.mark.parametrize(
    "region",
    [
        brush(ACCEPTED, id="other", label="Other"),
        brush(ACCEPTED, id="size") | {"original_width": 256},
        brush(ACCEPTED, id="image") | {"to_name": "another"},
        brush(ACCEPTED, id="damaged") | {"value": {"rle": [1, 2], "brushlabels": ["Object"]}},
        brush(~ACCEPTED, id="not under the click"),
        {"type": 5},
        None,
    ],
)
def test_regions_that_are_left_alone(app: Flask, engine: FakeEngine, region: Any) -> None:
    client = app.test_client()
    ask_for(client, refine_accepted=True)
    point = click(50, 50, id="a")
    answer(client, with_context(CLICKS, *point, drafts=[{"result": [region]}, None], annotations=5))
    assert (len(engine.calls[-1][0]), engine.calls[-1][1]) == (1, None)


def test_without_the_option_an_accepted_region_is_nothing_special(
    app: Flask, engine: FakeEngine
) -> None:
    drafts = [{"result": [brush(ACCEPTED, id="x")]}]
    answer(app.test_client(), with_context(CLICKS, *click(50, 50, id="a"), drafts=drafts))
    assert (len(engine.calls[-1][0]), engine.calls[-1][1]) == (1, None)


# --- Overlay -------------------------------------------------------------------------------------


def test_alternatives_come_together_under_helper_labels(app: Flask) -> None:
    client = app.test_client()
    ask_for(client, overlay=["alt 2", "alt 3"])
    regions = answer(client, with_context(CLICKS, *click(50, 50, id="a")))
    assert [each["value"]["brushlabels"] for each in regions] == [["alt 3"], ["alt 2"], ["Object"]]
    assert [each["meta"]["text"][0][:10] for each in regions] == [
        "proposal 3",
        "proposal 2",
        "proposal 1",
    ]
    areas = [mask_of(each).sum() for each in regions]
    assert areas == sorted(areas, reverse=True)
    # Whichever the annotator takes, it is known how it came about, and under which label.
    store = backend_of(app).store
    kept = [store.answer(each["id"]) for each in regions]
    assert [(each.shown, each.label) for each in kept if each] == [
        (2, "Object"),
        (1, "Object"),
        (0, "Object"),
    ]


def test_the_overlay_shows_also_what_is_found_ahead(app: Flask, engine: FakeEngine) -> None:
    engine.radii, engine.ahead = (0.12,), (0.4,)
    client = app.test_client()
    ask_for(client, overlay=["alt 2", "alt 3"])
    regions = answer(client, with_context(CLICKS, *click(50, 50, id="a")))
    assert [each["meta"]["text"] for each in regions] == [["proposal 2 of 2"], ["proposal 1 of 2"]]
    # Stepping on shows the same ones, and does not look for them again.
    stepped = [*click(50, 50, id="a"), *click(50.5, 50, id="c")]
    regions = answer(client, with_context(CLICKS, *stepped))
    assert [each["meta"]["text"] for each in regions] == [["proposal 1 of 2"], ["proposal 2 of 2"]]
    assert engine.looked_ahead == 1
    # A project that does not ask for it does not wait for it.
    engine.looked_ahead = 0
    ask_for(client)
    (region,) = answer(client, with_context(CLICKS, *click(70, 50, id="b")))
    assert region["meta"]["text"] == ["proposal 1 of 1 or more"]
    assert engine.looked_ahead == 0


def test_a_helper_label_that_the_project_lacks_costs_nobody_the_mask(app: Flask) -> None:
    client = app.test_client()
    ask_for(client, overlay=["no such label", "alt 2"])
    regions = answer(client, with_context(CLICKS, *click(50, 50, id="a")))
    assert [each["value"]["brushlabels"] for each in regions] == [["alt 2"], ["Object"]]
    (failure,) = backend_of(app).store.recent_failures()
    assert "no such label" in failure.message


# --- What a project may ask for ------------------------------------------------------------------


def test_wrong_parameters_are_told_and_do_not_break_the_connection(app: Flask) -> None:
    client = app.test_client()
    ask_for(client, overlay="alt 2", rectangle=True, rectangles=True)
    kinds = [(each.kind, each.route) for each in backend_of(app).store.recent_failures()]
    assert kinds == [("extra parameters", "/setup")] * 2
    assert len(answer(client, RECTANGLE)) == 1


def test_options_are_those_of_their_project(app: Flask) -> None:
    client = app.test_client()
    ask_for(client, rectangles=True)
    assert answer(client, RECTANGLE | {"project": "2.17"}) == []
