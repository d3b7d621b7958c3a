from __future__ import annotations

import base64
import copy
import io
import json
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from flask import Flask
from flask.testing import FlaskClient
from label_studio_sdk.converter.brush import decode_rle
from numpy.typing import NDArray
from werkzeug.test import TestResponse

from lidiv_backend.labelstudio.connect import SECRET_HEADER
from lidiv_backend.server.app import backend_of
from lidiv_backend.server.backend import MAX_FAILURE_TEXT
from tests.fake_engine import RADII, FakeEngine, disk_mask
from tests.image_host import Answer, ImageHost, encoded, pixels
from tests.labelstudio import golden
from tests.server.conftest import UPLOAD

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

PROJECT = "1.1795328789"


def click(
    x: float, y: float = 50.0, *, positive: bool = True, id: str | None = None
) -> dict[str, Any]:
    return {
        "id": id or f"{x}-{y}",
        "type": "keypointlabels",
        "from_name": "kp",
        "to_name": "image",
        "value": {"x": x, "y": y, "width": 0.3, "keypointlabels": ["Object"]},
        "is_positive": positive,
        "original_width": 512,
        "original_height": 512,
        "image_rotation": 0,
    }


def body(*results: Any, **fields: Any) -> dict[str, Any]:
    """The recorded interactive request, with other clicks."""
    recorded = copy.deepcopy(golden.load("backend_predict_interactive")["body"])
    recorded["params"]["context"] = {"result": list(results)}
    return dict(recorded | fields)


def batch(*tasks: dict[str, Any]) -> dict[str, Any]:
    recorded = copy.deepcopy(golden.load("backend_predict_batch_test")["body"])
    return dict(recorded | {"tasks": list(tasks) or recorded["tasks"]})


def mask_of(result: dict[str, Any]) -> NDArray[np.bool_]:
    shape = (result["original_height"], result["original_width"], 4)
    alpha: NDArray[np.bool_] = decode_rle(result["value"]["rle"]).reshape(shape)[..., 3] == 255
    return alpha


def predict(client: FlaskClient, content: Any) -> Any:
    response = client.post("/predict", json=content)
    assert response.status_code == 200, response.get_data(as_text=True)
    return response.get_json()["results"]


def only_region(results: Any) -> dict[str, Any]:
    ((region,),) = [result["result"] for result in results]
    return dict(region)


def failures(app: Flask) -> list[tuple[str, str]]:
    return [(failure.kind, failure.message) for failure in backend_of(app).store.recent_failures()]


def wait_for_background(app: Flask) -> None:
    """Return when everything that was waiting has been done."""
    done = threading.Event()
    backend_of(app).background.submit(done.set)
    assert done.wait(30)


# --- Recorded bodies -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", golden.BACKEND)
def test_every_recorded_request_is_answered(app: Flask, name: str) -> None:
    recorded = golden.load(name)
    headers = {
        name: value
        for name, value in recorded["headers"].items()
        if name not in ("Host", "Content-Length", "Connection")
    }
    response = app.test_client().open(
        recorded["path"], method=recorded["method"], headers=headers, json=recorded["body"]
    )
    assert response.status_code == (201 if recorded["path"] == "/webhook" else 200)
    assert response.is_json
    assert failures(app) == []


def test_setup_as_recorded(app: Flask) -> None:
    response = app.test_client().post("/setup", json=golden.load("backend_setup")["body"])
    assert response.get_json() == {"model_version": "fake-1"}
    (connection,) = backend_of(app).store.connections()
    assert (connection.project, connection.hostname) == (PROJECT, "http://127.0.0.1:8087")
    # The operator's token is used, so the other one is not even kept.
    assert connection.access_token == ""


def test_health_and_versions_as_recorded(app: Flask) -> None:
    client = app.test_client()
    assert client.get("/health").get_json() == {"status": "UP", "model_class": "LiDiv"}
    assert client.get("/versions", json={"project": PROJECT}).get_json() == {"versions": ["fake-1"]}
    assert client.get("/ready").get_json()["status"] == "READY"


def test_an_interactive_request_as_recorded(app: Flask) -> None:
    recorded = golden.load("backend_predict_interactive")["body"]
    (result,) = predict(app.test_client(), recorded)
    (region,) = result["result"]
    assert result["model_version"] == "fake-1"
    assert result["score"] == region["score"] == pytest.approx(0.9)
    assert (region["type"], region["from_name"]) == ("brushlabels", "brush")
    assert region["value"]["brushlabels"] == ["Object"]
    assert region["meta"] == {"text": ["proposal 1 of 4"]}
    # 43 % and 50 % of 512 pixels, centres at whole numbers.
    positive = disk_mask(512, 512, 0.43 * 512 - 0.5, 127.5, RADII[0] * 512)
    negative = disk_mask(512, 512, 255.5, 127.5, 0.06 * 512)
    np.testing.assert_array_equal(mask_of(region), positive & ~negative)


@pytest.mark.parametrize(
    ("name", "kind", "types"),
    [
        ("browser_interactive_accept_off", "brushlabels", ["brushlabels"]),
        ("browser_interactive_labels_keypoint_config", "labels", ["brush", "labels"]),
    ],
)
def test_recorded_browser_sessions_refine_one_mask(
    app: Flask, engine: FakeEngine, name: str, kind: str, types: list[str]
) -> None:
    client = app.test_client()
    shown = []
    for request in golden.load(name):
        content = body(label_config=golden.label_config(kind))
        content["params"]["context"] = request["context"]
        (result,) = predict(client, content)
        assert [region["type"] for region in result["result"]] == types
        assert len({region["id"] for region in result["result"]}) == 1
        assert [mask_of(region).tobytes() for region in result["result"]] == [
            mask_of(result["result"][0]).tobytes()
        ] * len(types)
        shown.append(mask_of(result["result"][0]))
    assert len(engine.calls) == 3
    for before, (_, previous) in zip([None, *shown], engine.calls, strict=False):
        np.testing.assert_array_equal(before, previous)
    first, second, third = shown
    assert (first & ~second).sum() == 0
    assert second.sum() > first.sum()
    assert third.sum() < second.sum()


def test_a_recorded_rectangle_gets_an_empty_valid_prediction(app: Flask) -> None:
    recorded = golden.load("backend_predict_interactive_rectangle")["body"]
    assert predict(app.test_client(), recorded) == [
        {"result": [], "score": 0.0, "model_version": "fake-1"}
    ]


def test_recorded_webhooks_are_written_down_without_their_secrets(app: Flask) -> None:
    client = app.test_client()
    names = [name for name in golden.BACKEND if "webhook" in name]
    for name in names:
        assert client.post("/webhook", json=golden.load(name)["body"]).status_code == 201
    store = backend_of(app).store
    events = store.events()
    assert {action for action, _ in events} == {name.split("webhook_")[1] for name in names}
    assert "placeholder-project-token" not in json.dumps(events)
    recorded = golden.load("backend_webhook_ANNOTATION_CREATED")["body"]["annotation"]
    kept = store.annotation(PROJECT, 2)
    assert kept is not None
    assert kept.result == recorded["result"]
    assert kept.task_data == {"image": UPLOAD}


def test_a_recorded_annotation_lives_and_is_deleted(app: Flask) -> None:
    client, store = app.test_client(), backend_of(app).store
    for action, deleted in (("ANNOTATION_CREATED", False), ("ANNOTATIONS_DELETED", True)):
        client.post("/webhook", json=golden.load(f"backend_webhook_{action}")["body"])
        kept = store.annotation(PROJECT, 2)
        assert kept is not None
        assert (kept.deleted_at is not None) == deleted


# --- Alternatives --------------------------------------------------------------------------------


def test_clicking_again_shows_the_next_alternative(app: Flask, engine: FakeEngine) -> None:
    client = app.test_client()
    clicks = [click(50), click(50.8), click(49.2), click(50, 50.8), click(50, 49.2)]
    for count in range(1, 6):
        region = only_region(predict(client, body(*clicks[:count])))
        index = (count - 1) % 4
        assert region["meta"] == {"text": [f"proposal {index + 1} of 4"]}
        expected = disk_mask(512, 512, 255.5, 255.5, RADII[index] * 512)
        np.testing.assert_array_equal(mask_of(region), expected)
    assert len(engine.calls) == 1


def test_a_further_click_refines_the_alternative_that_was_showing(
    app: Flask, engine: FakeEngine
) -> None:
    client = app.test_client()
    second = mask_of(only_region(predict(client, body(click(50), click(50.8)))))
    region = only_region(predict(client, body(click(50), click(50.8), click(75))))
    assert region["meta"] == {"text": ["proposal 1 of 4"]}
    np.testing.assert_array_equal(engine.calls[-1][1], second)


def test_an_accepted_region_finds_its_clicks(app: Flask) -> None:
    client, store = app.test_client(), backend_of(app).store
    clicks = [click(50, id="one"), click(50.8, id="two"), click(80, positive=False, id="three")]
    region = only_region(predict(client, body(*clicks)))
    kept = store.answer(region["id"])
    assert kept is not None
    assert [(c.id, c.positive, c.next) for c in kept.clicks] == [
        ("one", True, False),
        ("two", True, True),
        ("three", False, False),
    ]
    assert (kept.project, kept.task, kept.label, kept.shown) == (PROJECT, 1, "Object", 0)
    assert [proposal.head for proposal in kept.proposals] == [0, 1, 2, 3]
    assert kept.model_version == "fake-1"


def test_ids_differ_between_answers_and_not_between_repetitions(app: Flask) -> None:
    client = app.test_client()
    requests = [
        body(click(50)),
        body(click(50), click(50.8)),
        body(click(50), click(50.8), click(80)),
        body(click(50, id="another point")),
    ]
    first = [only_region(predict(client, content))["id"] for content in requests]
    again = [only_region(predict(client, content))["id"] for content in requests]
    assert first == again
    assert len(set(first)) == 4


def test_a_promotion_does_not_change_the_model_in_the_middle(
    app: Flask, engine: FakeEngine
) -> None:
    client = app.test_client()
    predict(client, body(click(50)))
    newer = FakeEngine("fake-2", radii=(0.05, 0.1))
    backend_of(app).engines.promote(newer)
    (pinned,) = predict(client, body(click(50), click(80)))
    assert pinned["model_version"] == "fake-1"
    assert newer.calls == []
    (fresh,) = predict(client, body(click(20)))
    assert fresh["model_version"] == "fake-2"
    assert client.get("/versions").get_json() == {"versions": ["fake-2", "fake-1"]}


def test_a_version_that_is_gone_gives_way(app: Flask) -> None:
    client = app.test_client()
    predict(client, body(click(50)))
    for number in (2, 3):
        backend_of(app).engines.promote(FakeEngine(f"fake-{number}"))
    (result,) = predict(client, body(click(50), click(80)))
    assert result["model_version"] == "fake-3"


def test_only_the_first_task_of_an_interactive_request_is_answered(app: Flask) -> None:
    content = body(click(50))
    content["tasks"] *= 2
    first, second = predict(app.test_client(), content)
    assert len(first["result"]) == 1
    assert second["result"] == []


# --- Batches -------------------------------------------------------------------------------------


def task(number: int, *keypoints: dict[str, Any], image: str = UPLOAD) -> dict[str, Any]:
    return {
        "id": number,
        "data": {"image": image},
        "annotations": [{"id": 1, "result": list(keypoints)}],
        "predictions": [],
    }


def test_a_task_with_key_points_gets_its_alternatives_worst_first(app: Flask) -> None:
    (alternatives,) = predict(app.test_client(), batch(task(1, click(50))))
    assert [item["score"] for item in alternatives] == pytest.approx([0.6, 0.7, 0.8, 0.9])
    assert [item["result"][0]["meta"]["text"] for item in alternatives] == [
        [f"proposal {number} of 4"] for number in (4, 3, 2, 1)
    ]
    versions = [item["model_version"] for item in alternatives]
    assert len(set(versions)) == 4
    assert versions[-1] == "fake-1"
    for item, radius in zip(alternatives, reversed(RADII), strict=True):
        expected = disk_mask(512, 512, 255.5, 255.5, radius * 512)
        np.testing.assert_array_equal(mask_of(item["result"][0]), expected)
    ids = {item["result"][0]["id"] for item in alternatives}
    assert len(ids) == 4
    assert all(backend_of(app).store.answer(id) for id in ids)


def test_one_alternative_alone_is_no_list(app: Flask, engine: FakeEngine) -> None:
    engine.radii = (0.2,)
    (result,) = predict(app.test_client(), batch(task(1, click(50))))
    assert len(result["result"]) == 1


def test_several_labels_of_a_task_are_regions_of_one_prediction(app: Flask) -> None:
    other = click(80)
    other["value"]["keypointlabels"] = ["Other"]
    (alternatives,) = predict(app.test_client(), batch(task(1, click(20), other)))
    labels = [region["value"]["brushlabels"] for region in alternatives[-1]["result"]]
    assert labels == [["Object"], ["Other"]]


def test_a_task_without_key_points_is_embedded_in_the_background(
    app: Flask, engine: FakeEngine, label_studio: ImageHost
) -> None:
    client = app.test_client()
    (result,) = predict(client, batch())
    assert result == {"result": [], "score": 0.0, "model_version": "fake-1"}
    wait_for_background(app)
    assert len(engine.embedded) == 1
    predict(client, body(click(50)))
    assert len(engine.embedded) == 1
    assert label_studio.paths() == [UPLOAD]


def test_the_next_click_is_prepared_in_the_background(app: Flask, engine: FakeEngine) -> None:
    region = only_region(predict(app.test_client(), body(click(50), click(80, positive=False))))
    wait_for_background(app)
    ((clicks, shown),) = engine.prepared
    assert [one.positive for one in clicks] == [True, False]
    np.testing.assert_array_equal(shown, mask_of(region))


def test_what_is_got_ready_is_for_clicks_that_are_still_to_come(
    app: Flask, engine: FakeEngine
) -> None:
    client, busy = app.test_client(), threading.Event()

    def hold() -> None:
        assert busy.wait(60)

    assert backend_of(app).background.submit(hold)
    predict(client, body(click(50)))
    predict(client, body(click(50), click(80)))
    busy.set()
    wait_for_background(app)
    assert [len(clicks) for clicks, _ in engine.prepared] == [2]


def test_one_bad_task_does_not_fail_a_batch(app: Flask) -> None:
    results = predict(
        app.test_client(),
        batch(
            task(1, click(50), image="/data/local-files/?d=gone.jpg"),
            task(2, click(200)),
            task(3, {"type": "brushlabels", "value": {"rle": [1, 2, 3]}}, 5),  # type: ignore[arg-type]
            task(4, click(50)),
        ),
    )
    assert [isinstance(result, list) for result in results] == [False, False, False, True]
    assert all(result["result"] == [] for result in results[:3])
    assert [kind for kind, _ in failures(app)] == ["bad click", "image source"]
    kept = backend_of(app).store.recent_failures()
    assert [failure.task for failure in kept] == [2, 1]


def test_a_defect_in_the_engine_does_not_fail_a_batch(
    app: Flask, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "predict", lambda *_, **__: 1 / 0)
    (result,) = predict(app.test_client(), batch(task(1, click(50))))
    assert result["result"] == []
    assert failures(app)[0][0] == "defect"


def test_what_fails_in_the_background_is_told(app: Flask) -> None:
    predict(app.test_client(), batch(task(9, image="/data/local-files/?d=gone.jpg")))
    wait_for_background(app)
    (failure,) = backend_of(app).store.recent_failures()
    assert (failure.kind, failure.task) == ("image source", 9)


# --- Bad input -----------------------------------------------------------------------------------


def refused(app: Flask, response: TestResponse, status: int, kind: str, message: str) -> None:
    """A clear JSON error, an entry in the list of failures, and a server that goes on."""
    content = response.get_json()
    assert response.status_code == status, content
    assert content["error"] == kind
    assert message in content["message"]
    assert set(content) == {"error", "message", "remedy", "request_id"}
    assert content["remedy"]
    assert response.headers["X-Request-ID"] == content["request_id"]
    kept = backend_of(app).store.recent_failures()[0]
    assert (kept.kind, kept.message, kept.request_id) == (
        kind,
        content["message"],
        content["request_id"],
    )
    # Label Studio shows the reason in some places; it must fit into a header.
    assert response.status.isascii()
    assert "\n" not in response.status
    page = app.test_client().get("/").get_data(as_text=True)
    assert content["request_id"] in page
    assert only_region(predict(app.test_client(), body(click(30))))


def bad_image(label_studio: ImageHost, content: bytes) -> None:
    label_studio.routes["/data/upload/1/bad.jpg"] = Answer(body=content)


def on_image(address: object, *, task: int | None = None) -> dict[str, Any]:
    content = body(click(50))
    content["tasks"][0]["id"] = task or content["tasks"][0]["id"]
    content["tasks"][0]["data"] = {"image": address}
    return content


@pytest.mark.parametrize(
    "content", [b"", b"not an image", encoded(pixels(64, 64), kind="JPEG")[:500]]
)
def test_an_unreadable_or_truncated_image(
    app: Flask, label_studio: ImageHost, content: bytes
) -> None:
    bad_image(label_studio, content)
    response = app.test_client().post("/predict", json=on_image("/data/upload/1/bad.jpg"))
    refused(app, response, 422, "bad image", "cannot be read")


def test_an_image_over_the_pixel_limit(
    make_app: Callable[..., Flask], label_studio: ImageHost
) -> None:
    app = make_app(max_pixels=512 * 512)
    bad_image(label_studio, encoded(np.zeros((512, 513, 3), np.uint8)))
    response = app.test_client().post("/predict", json=on_image("/data/upload/1/bad.jpg"))
    refused(app, response, 422, "bad image", "limit")


def test_an_image_that_is_gone(app: Flask) -> None:
    response = app.test_client().post("/predict", json=on_image("/data/local-files/?d=x.jpg"))
    refused(app, response, 502, "image source", "404")


def test_a_wrong_token(
    app: Flask, label_studio: ImageHost, caplog: pytest.LogCaptureFixture
) -> None:
    label_studio.routes["/data/upload/1/b.jpg"] = Answer(401)
    response = app.test_client().post("/predict", json=on_image("/data/upload/1/b.jpg"))
    refused(app, response, 502, "token", "token")
    assert "placeholder-token" not in caplog.text


def test_a_source_that_refuses_connections(
    app: Flask, label_studio: ImageHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    label_studio.routes["/data/upload/1/b.jpg"] = Answer(
        302, headers={"Location": "http://127.0.0.1:1/data/upload/1/b.jpg"}
    )
    response = app.test_client().post("/predict", json=on_image("/data/upload/1/b.jpg"))
    refused(app, response, 403, "image address", "private network")


@pytest.mark.parametrize(
    "address",
    [
        "file:///etc/passwd",
        "http://169.254.169.254/latest/meta-data/",
        "http://localhost:1/x.jpg",
        "http://elsewhere.test/x.jpg",
        "/data/upload/../../etc/passwd",
    ],
)
def test_an_address_that_is_not_fetched(app: Flask, label_studio: ImageHost, address: str) -> None:
    response = app.test_client().post("/predict", json=on_image(address))
    assert label_studio.seen == []
    refused(app, response, 403, "image address", "")


@pytest.mark.parametrize("address", [None, 5, ["/data/a.jpg"], {"url": "x"}])
def test_a_task_without_an_image(app: Flask, address: object) -> None:
    response = app.test_client().post("/predict", json=on_image(address))
    refused(app, response, 400, "bad request", "no image")


def test_no_clicks_are_an_empty_valid_prediction(app: Flask) -> None:
    empty = [{"result": [], "score": 0.0, "model_version": "fake-1"}]
    client = app.test_client()
    assert predict(client, body()) == empty
    for context in ({}, {"result": None}):
        content = body()
        content["params"]["context"] = context
        assert predict(client, content) == empty
    assert predict(client, body(click(50, positive=False))) == empty


@pytest.mark.parametrize(("x", "y"), [(100.5, 50), (50, -1), (float("nan"), 5), (5, float("inf"))])
def test_a_click_outside_the_image_or_not_a_number(app: Flask, x: float, y: float) -> None:
    response = app.test_client().post("/predict", json=body(click(x, y)))
    refused(app, response, 400, "bad click", "Click 1")


def test_a_click_without_coordinates(app: Flask) -> None:
    content = body(click(50))
    del content["params"]["context"]["result"][0]["value"]["x"]
    response = app.test_client().post("/predict", json=content)
    refused(app, response, 400, "bad click", "not numbers")


def test_an_unknown_label(app: Flask) -> None:
    content = body(click(50))
    content["params"]["context"]["result"][0]["value"]["keypointlabels"] = ["Unicorn <b>"]
    response = app.test_client().post("/predict", json=content)
    refused(app, response, 400, "unknown label", "'Unicorn <b>'")
    page = app.test_client().get("/").get_data(as_text=True)
    assert "Unicorn &lt;b&gt;" in page
    assert "Unicorn <b>" not in page


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<Brush name", "<Polygon name", "no <Brush>"),
        ("<KeyPoint name", "<Polygon name", "no <KeyPoint>"),
        ("</View>", "", "cannot be read"),
    ],
)
def test_a_label_config_without_brush_or_key_point(
    app: Flask, old: str, new: str, message: str
) -> None:
    config = golden.label_config("labels").replace(old, new)
    client = app.test_client()
    response = client.post("/predict", json=body(click(50), label_config=config))
    refused(app, response, 400, "label config", message)
    setup = golden.load("backend_setup")["body"] | {"schema": config}
    response = client.post("/setup", json=setup)
    refused(app, response, 400, "label config", message)
    # What was sent is kept: images can be fetched as soon as the config is right.
    assert backend_of(app).store.connection(PROJECT) is not None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"nonsense",
        b"\xff\xfe\x00",
        b'{"tasks": [1,]}',
        b"[1, 2]",
        b'"text"',
        b"null",
        b"[" * 100_000,
        b'{"project": "\\ud800"}',
        b'{"project": "\xed\xa0\x80"}',
        b'{"action": "\xed\xa0\x80", "project": {"id": 1}}',
        '{"action": "\\ud800", "project": {"id": 1}}'.encode("utf-16"),
        '{"action": "x", "project": {"id": 1}}'.encode("utf-32"),
        b'{"tasks": ' + b"9" * 5000 + b"}",
    ],
)
@pytest.mark.parametrize("route", ["/predict", "/setup", "/webhook"])
def test_malformed_json(app: Flask, route: str, data: bytes) -> None:
    response = app.test_client().post(route, data=data, content_type="application/json")
    refused(app, response, 400, "bad request", "JSON")


@pytest.mark.parametrize(
    ("route", "content", "message"),
    [
        ("/predict", {}, "tasks"),
        ("/predict", {"tasks": [], "label_config": ""}, "tasks"),
        ("/predict", {"tasks": [{"id": 10**30}], "label_config": ""}, "tasks.0.id"),
        ("/predict", {"tasks": [{"id": -1}], "label_config": ""}, "tasks.0.id"),
        ("/predict", {"tasks": "x", "label_config": ""}, "tasks"),
        ("/predict", {"tasks": [{}], "label_config": 5}, "label_config"),
        ("/predict", {"tasks": [{}], "label_config": "", "project": "9" * 100}, "project"),
        ("/setup", {"project": "1.1"}, "schema"),
        ("/setup", {"schema": "<View/>", "project": "1" * 100}, "project"),
        ("/webhook", {}, "action"),
        ("/webhook", {"action": 7}, "action"),
        ("/webhook", {"action": "ANNOTATION_CREATED", "annotation": {"id": "x"}}, "annotation.id"),
    ],
)
def test_json_that_is_no_request(
    app: Flask, route: str, content: dict[str, Any], message: str
) -> None:
    response = app.test_client().post(route, json=content)
    refused(app, response, 400, "bad request", message)


def test_names_of_any_length_make_no_long_failures(app: Flask) -> None:
    far_too_long = "x" * 1_000_000
    content = body(click(50) | {"to_name": far_too_long})
    response = app.test_client().post("/predict", json=content)
    refused(app, response, 400, "label config", "no image 'xxx")
    assert len(response.get_json()["message"]) == MAX_FAILURE_TEXT
    # What to do about it can name a tag, too.
    content["label_config"] = content["label_config"].replace('"image"', f'"{far_too_long}"')
    content["tasks"][0]["data"] = {}
    response = app.test_client().post("/predict", json=content)
    refused(app, response, 400, "bad request", "no image under 'image'")
    assert len(response.get_json()["remedy"]) == MAX_FAILURE_TEXT
    for failure in backend_of(app).store.recent_failures():
        assert len(failure.message) <= MAX_FAILURE_TEXT
        assert len(failure.remedy) <= MAX_FAILURE_TEXT


def test_an_event_that_is_not_understood_is_kept_nevertheless(app: Flask) -> None:
    content = {"action": "ANNOTATION_CREATED", "annotation": {"id": "x", "result": [1]}}
    assert app.test_client().post("/webhook", json=content).status_code == 400
    assert backend_of(app).store.events() == [("ANNOTATION_CREATED", content)]


@pytest.mark.parametrize("action", ["ANNOTATION_DELETED", "SOMETHING_NEW", "PROJECT_UPDATED"])
def test_an_unknown_event_is_kept(app: Flask, action: str) -> None:
    assert app.test_client().post("/webhook", json={"action": action}).status_code == 201
    assert backend_of(app).store.events()[0][0] == action


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit(make_app: Callable[..., Flask], chunked: bool) -> None:
    app = make_app(max_body_bytes=8000)
    data = b'{"x": "' + b"a" * 8000 + b'"}'
    extra: dict[str, Any] = {"wsgi.input_terminated": True} if chunked else {}
    headers = {"Transfer-Encoding": "chunked"} if chunked else {}
    response = app.test_client().post(
        "/predict",
        data=data,
        content_type="application/json",
        headers=headers,
        environ_overrides=extra | ({"CONTENT_LENGTH": ""} if chunked else {}),
    )
    refused(app, response, 413, "request size", "8,000 bytes")


@pytest.mark.parametrize("name", ["saved_result_badrle", "saved_result_wrongsize"])
def test_a_damaged_rle_in_annotations_does_not_stop_a_click(app: Flask, name: str) -> None:
    content = body(click(50))
    content["tasks"][0]["annotations"] = [{"id": 1, "result": golden.load(name)}]
    content["tasks"][0]["drafts"] = "nonsense"
    content["tasks"][0]["predictions"] = [{"result": [{"value": 7}]}, None]
    assert only_region(predict(app.test_client(), content))
    assert failures(app) == []


def test_an_image_of_another_size_than_label_studio_shows(
    app: Flask, label_studio: ImageHost
) -> None:
    bad_image(label_studio, encoded(pixels(40, 50)))
    response = app.test_client().post("/predict", json=on_image("/data/upload/1/bad.jpg"))
    refused(app, response, 400, "bad request", "512 x 512 pixels, but its file has 50 x 40")


def test_exif_orientation_turns_the_image_as_label_studio_does(
    app: Flask, label_studio: ImageHost
) -> None:
    # A file of 512 x 384 with orientation 6 is shown, and clicked on, as 384 x 512.
    file = encoded(pixels(384, 512), kind="JPEG", orientation=6)
    label_studio.routes["/data/upload/1/turned.jpg"] = Answer(body=file)
    content = on_image("/data/upload/1/turned.jpg")
    content["params"]["context"]["result"][0] |= {"original_width": 384, "original_height": 512}
    region = only_region(predict(app.test_client(), content))
    assert (region["original_width"], region["original_height"]) == (384, 512)
    assert mask_of(region).shape == (512, 384)


def test_a_defect_is_a_json_error_too(
    app: Flask, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = app.test_client()
    with monkeypatch.context() as patch:
        patch.setattr(engine, "predict", lambda *_, **__: 1 / 0)
        response = client.post("/predict", json=body(click(50)))
    assert response.status_code == 500
    assert response.get_json()["error"] == "defect"
    assert response.get_json()["request_id"] in response.get_json()["remedy"]
    assert "ZeroDivisionError" in failures(app)[0][1]
    assert only_region(predict(client, body(click(50))))


@pytest.mark.parametrize(
    ("method", "route", "status"),
    [("GET", "/nothing", 404), ("GET", "/predict", 405), ("POST", "/health", 405)],
)
def test_what_is_not_there_is_json_and_no_failure(
    app: Flask, method: str, route: str, status: int
) -> None:
    response = app.test_client().open(route, method=method)
    assert response.status_code == status
    assert response.get_json()["request_id"]
    assert failures(app) == []


def test_a_full_database_does_not_keep_the_mask_from_the_annotator(
    app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    store = backend_of(app).store
    with store._engine.begin() as connection:
        for table in ("interactions", "failures", "connections"):
            connection.exec_driver_sql(f"DROP TABLE {table}")
    client = app.test_client()
    assert only_region(predict(client, body(click(50), click(80))))
    response = client.post("/predict", json=body(click(500)))
    assert response.get_json()["error"] == "bad click"
    assert "is not kept" in caplog.text
    response = client.post("/setup", json=golden.load("backend_setup")["body"])
    assert (response.status_code, response.get_json()["error"]) == (503, "database")


# --- Where Label Studio is -----------------------------------------------------------------------


def test_without_settings_what_setup_said_is_used(
    make_app: Callable[..., Flask], label_studio: ImageHost
) -> None:
    app = make_app(label_studio_url="", label_studio_token="")
    client = app.test_client()
    response = client.post("/predict", json=body(click(50)))
    assert "LIDIV_LABEL_STUDIO_URL" in response.get_json()["remedy"]
    setup = golden.load("backend_setup")["body"]
    client.post(
        "/setup", json=setup | {"hostname": label_studio.url, "access_token": "placeholder-token"}
    )
    assert only_region(predict(client, body(click(50))))


def test_the_address_from_the_settings_goes_before_what_setup_says(
    make_app: Callable[..., Flask], label_studio: ImageHost
) -> None:
    app = make_app(label_studio_token="")
    client = app.test_client()
    setup = golden.load("backend_setup")["body"] | {"hostname": "http://localhost:1"}
    client.post("/setup", json=setup | {"access_token": "placeholder-token"})
    assert only_region(predict(client, body(click(50))))


def test_the_operators_token_is_never_sent_where_setup_points(
    make_app: Callable[..., Flask], label_studio: ImageHost
) -> None:
    app = make_app()
    client = app.test_client()
    setup = golden.load("backend_setup")["body"] | {"hostname": "http://evil.test"}
    client.post("/setup", json=setup)
    assert only_region(predict(client, body(click(50))))
    assert backend_of(app).connection(PROJECT).url == label_studio.url  # type: ignore[union-attr]


def test_tokens_never_reach_log_page_or_answers(
    make_app: Callable[..., Flask], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    app = make_app(label_studio_url="", label_studio_token="")
    client = app.test_client()
    setup = golden.load("backend_setup")["body"] | {"access_token": "never-seen"}
    client.post("/setup", json=setup)
    client.post("/setup", json=setup | {"schema": "<View/>"})
    client.post("/setup", json=setup | {"schema": 5})
    response = client.post("/predict", json=body(click(50)))
    everything = caplog.text + client.get("/").get_data(as_text=True)
    assert "never-seen" not in everything + response.get_data(as_text=True)


# --- Who may ask ---------------------------------------------------------------------------------

LOGIN = {"basic_auth_user": "lab", "basic_auth_password": "pässword"}


def authorization(user: str, password: str) -> dict[str, str]:
    encoded_login = base64.b64encode(f"{user}:{password}".encode()).decode()
    return {"Authorization": f"Basic {encoded_login}"}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        authorization("lab", "wrong"),
        authorization("wrong", "pässword"),
        authorization("", ""),
        {"Authorization": "Bearer x"},
        {"Authorization": "Basic !!!"},
    ],
)
@pytest.mark.parametrize("route", ["/setup", "/predict", "/versions", "/"])
def test_a_wrong_login_is_refused(
    make_app: Callable[..., Flask], route: str, headers: dict[str, str]
) -> None:
    app = make_app(**LOGIN)
    method = "GET" if route in ("/", "/versions") else "POST"
    response = app.test_client().open(route, method=method, headers=headers, json={})
    assert response.status_code == 401
    assert response.get_json()["error"] == "unauthorized"
    assert failures(app)[0][0] == "unauthorized"


def test_the_right_login_is_accepted(make_app: Callable[..., Flask]) -> None:
    client = make_app(**LOGIN).test_client()
    headers = authorization("lab", "pässword")
    setup = client.post("/setup", json=golden.load("backend_setup")["body"], headers=headers)
    assert setup.status_code == 200
    assert client.get("/", headers=headers).status_code == 200


def test_health_answers_probes_and_tells_label_studio_of_a_wrong_login(
    make_app: Callable[..., Flask],
) -> None:
    client = make_app(**LOGIN).test_client()
    assert client.get("/health").status_code == 200
    assert client.get("/health", headers=authorization("lab", "pässword")).status_code == 200
    assert client.get("/health", headers=authorization("lab", "bad")).status_code == 401


CREATED = "backend_webhook_ANNOTATION_CREATED"
START = "backend_webhook_START_TRAINING"


@pytest.mark.parametrize(
    ("configured", "name", "headers", "status"),
    [
        ({}, CREATED, {}, 201),
        ({"webhook_secret": "s3cret"}, CREATED, {}, 401),
        ({"webhook_secret": "s3cret"}, CREATED, {SECRET_HEADER: "wrong"}, 401),
        ({"webhook_secret": "s3cret"}, CREATED, {SECRET_HEADER: "s3cret"}, 201),
        # Label Studio sends its webhooks without the login.
        (LOGIN, CREATED, {}, 401),
        (LOGIN, CREATED, authorization("lab", "pässword"), 201),
        (LOGIN | {"webhook_secret": "s3cret"}, CREATED, {SECRET_HEADER: "s3cret"}, 201),
        (LOGIN | {"webhook_secret": "s3cret"}, CREATED, {}, 401),
        # START_TRAINING comes like /predict: with the login, without the header.
        (LOGIN | {"webhook_secret": "s3cret"}, START, authorization("lab", "pässword"), 201),
        (LOGIN | {"webhook_secret": "s3cret"}, START, {}, 401),
        ({"webhook_secret": "s3cret"}, START, {}, 201),
    ],
)
def test_who_may_send_webhooks(
    make_app: Callable[..., Flask],
    configured: dict[str, str],
    name: str,
    headers: dict[str, str],
    status: int,
) -> None:
    app = make_app(**configured)
    response = app.test_client().post("/webhook", json=golden.load(name)["body"], headers=headers)
    assert response.status_code == status
    assert len(backend_of(app).store.events()) == (1 if status == 201 else 0)
    if status == 401:
        assert "lidiv connect" in response.get_json()["remedy"]


class Counted(io.RawIOBase):
    """A body that knows how much of it was read."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self._left = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        return self._left.readinto(buffer)

    @property
    def taken(self) -> int:
        return self._left.tell()


@pytest.mark.parametrize(
    ("configured", "headers", "limit"),
    [
        (LOGIN, {}, 0),
        (LOGIN | {"webhook_secret": "s3cret"}, {}, 0),
        (LOGIN | {"webhook_secret": "s3cret"}, {SECRET_HEADER: "wrong"}, 0),
        (LOGIN | {"webhook_secret": "s3cret"}, authorization("lab", "wrong"), 0),
        # Only START_TRAINING may come without anything, and it is small.
        ({"webhook_secret": "s3cret"}, {}, 256_000),
        ({"webhook_secret": "s3cret"}, {SECRET_HEADER: "wrong"}, 256_000),
    ],
)
@pytest.mark.parametrize("chunked", [False, True])
def test_webhooks_of_nobody_are_hardly_read(
    make_app: Callable[..., Flask],
    configured: dict[str, str],
    headers: dict[str, str],
    limit: int,
    chunked: bool,
) -> None:
    app = make_app(**configured)
    event = golden.load(CREATED)["body"] | {"padding": "x" * 2_000_000}
    data = json.dumps(event).encode()
    sent = Counted(data)
    extra: dict[str, Any] = {"CONTENT_LENGTH": str(len(data))}
    if chunked:
        headers = headers | {"Transfer-Encoding": "chunked"}
        extra = {"CONTENT_LENGTH": "", "wsgi.input_terminated": True}
    response = app.test_client().post(
        "/webhook",
        content_type="application/json",
        headers=headers,
        environ_overrides={"wsgi.input": sent} | extra,
    )
    assert response.status_code == 401
    assert "lidiv connect" in response.get_json()["remedy"]
    assert sent.taken <= (limit if chunked else 0)
    assert backend_of(app).store.events() == []


def test_webhooks_with_the_secret_may_be_large(make_app: Callable[..., Flask]) -> None:
    client = make_app(webhook_secret="s3cret").test_client()
    event = golden.load(CREATED)["body"] | {"padding": "x" * 2_000_000}
    headers = {SECRET_HEADER: "s3cret"}
    assert client.post("/webhook", json=event, headers=headers).status_code == 201


def test_a_training_may_be_started_for_very_many_labels(make_app: Callable[..., Flask]) -> None:
    app = make_app(webhook_secret="s3cret")
    event = copy.deepcopy(golden.load(START)["body"])
    event["project"]["label_config"] = "x" * 200_000
    assert app.test_client().post("/webhook", json=event).status_code == 201
    assert len(backend_of(app).store.events()) == 1


# --- Many at once --------------------------------------------------------------------------------


def test_two_annotators_share_one_embedding_and_one_download(
    app: Flask, engine: FakeEngine, label_studio: ImageHost
) -> None:
    embedding, release = threading.Event(), threading.Event()

    def hold() -> None:
        embedding.set()
        assert release.wait(30)

    engine.while_embedding = hold
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(predict, app.test_client(), body(click(20)))
        assert embedding.wait(30)
        second = pool.submit(predict, app.test_client(), body(click(80)))
        # Nobody else is held up.
        assert app.test_client().get("/health").status_code == 200
        release.set()
        masks = [mask_of(only_region(future.result(30))) for future in (first, second)]
    assert (masks[0] != masks[1]).any()
    assert len(engine.embedded) == 1
    assert label_studio.paths() == [UPLOAD]


def test_many_requests_at_once(app: Flask, engine: FakeEngine) -> None:
    def work(number: int) -> str:
        client = app.test_client()
        if number % 4 == 3:
            assert client.post("/predict", json=body(click(500))).status_code == 400
            return ""
        return str(only_region(predict(client, body(click(10 + number))))["id"])

    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(work, range(32)))
    assert len(set(ids)) == 25
    assert len(engine.embedded) == 1


def test_slow_images_leave_threads_for_all_else(
    make_app: Callable[..., Flask], label_studio: ImageHost
) -> None:
    app = make_app(threads=6)
    asked = threading.Barrier(3)
    release = threading.Event()

    def slowly(_: object) -> Answer:
        asked.wait(30)
        assert release.wait(30)
        return Answer(body=encoded(pixels(512, 512)))

    for name in ("1", "2"):
        label_studio.routes[f"/data/upload/{name}.jpg"] = slowly
    with ThreadPoolExecutor(2) as pool:
        slow = [
            pool.submit(
                predict, app.test_client(), on_image(f"/data/upload/{name}.jpg", task=int(name))
            )
            for name in ("1", "2")
        ]
        asked.wait(30)
        response = app.test_client().post("/predict", json=body(click(50)))
        assert (response.status_code, response.get_json()["error"]) == (503, "busy")
        assert response.headers["Retry-After"]
        assert app.test_client().get("/health").status_code == 200
        release.set()
        assert all(only_region(future.result(30)) for future in slow)
    assert only_region(predict(app.test_client(), body(click(50))))


# --- The page ------------------------------------------------------------------------------------


def test_the_page_says_what_this_is(app: Flask) -> None:
    client = app.test_client()
    page = client.get("/")
    assert page.mimetype == "text/html"
    assert "fake-1" in page.get_data(as_text=True)
    assert "None yet" in page.get_data(as_text=True)
    setup = golden.load("backend_setup")["body"] | {"hostname": "http://<script>alert(1)"}
    client.post("/setup", json=setup)
    text = client.get("/").get_data(as_text=True)
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
