from __future__ import annotations

import base64
import copy
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from flask import Flask
from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families

from lidiv_backend.learning.runs import RunCause, RunQueue
from lidiv_backend.observing import STAGES
from lidiv_backend.server.app import backend_of
from tests.fake_engine import FakeEngine
from tests.image_host import ImageHost
from tests.labelstudio import golden
from tests.server.conftest import TOKEN
from tests.server.test_app import PROJECT, body, click, predict, wait_for_background
from tests.server.test_serve import SETTINGS, running

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def read(text: str) -> Samples:
    """What Prometheus' own parser makes of it."""
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


def scrape(client: FlaskClient) -> Samples:
    response = client.get("/metrics")
    assert response.status_code == 200
    assert response.mimetype == "text/plain"
    return read(response.get_data(as_text=True))


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((name, frozenset(labels.items())), 0.0)


def test_clicks_are_counted_by_what_they_mean(app: Flask) -> None:
    client = app.test_client()
    first = [click(50)]
    second = [*first, click(50.8)]
    third = [*second, click(80, positive=False)]
    for clicks in (first, second, third):
        predict(client, body(*clicks))
    samples = scrape(client)
    kinds = {
        kind: value(samples, "lidiv_clicks_total", kind=kind)
        for kind in ("positive", "negative", "next")
    }
    assert kinds == {"positive": 1, "negative": 1, "next": 1}


def test_stages_and_caches(app: Flask) -> None:
    client = app.test_client()
    for clicks in ([click(50)], [click(50), click(80)], [click(50), click(80)]):
        predict(client, body(*clicks))
    samples = scrape(client)
    counts = {name: value(samples, "lidiv_stage_seconds_count", stage=name) for name in STAGES}
    # The fake engine has no stages of its own; see tests/test_observing.py for the real one.
    expected = dict.fromkeys(STAGES, 0) | {"fetch": 1, "decode": 1, "encode": 3}
    assert counts == expected

    def asked(cache: str) -> tuple[float, float]:
        hits, misses = (
            value(samples, "lidiv_cache_requests_total", cache=cache, result=result)
            for result in ("hit", "miss")
        )
        return hits, misses

    assert asked("images") == (0, 1)
    assert asked("proposals") == (1, 2)


def test_requests_by_route_and_status(app: Flask) -> None:
    client = app.test_client()
    predict(client, body(click(50)))
    client.post("/predict", data="{", content_type="application/json")
    client.get("/invented/one")
    client.get("/invented/two")
    samples = scrape(client)
    assert value(samples, "lidiv_requests_total", route="/predict", status="200") == 1
    assert value(samples, "lidiv_requests_total", route="/predict", status="400") == 1
    # Addresses that somebody makes up are no new numbers.
    assert value(samples, "lidiv_requests_total", route="none", status="404") == 2
    assert value(samples, "lidiv_request_seconds_count", route="/predict") == 2
    assert value(samples, "lidiv_failures_total", kind="bad request") == 1
    assert not any("invented" in str(key) for key in samples)
    # This request itself.
    assert value(samples, "lidiv_requests_in_progress") == 1
    assert value(scrape(client), "lidiv_requests_in_progress") == 1


def test_an_application_counts_for_itself(make_app: Callable[..., Flask], tmp_path: Path) -> None:
    first, second = make_app(), make_app(state=tmp_path / "second")
    predict(first.test_client(), body(click(50)))
    assert value(scrape(first.test_client()), "lidiv_clicks_total", kind="positive") == 1
    assert value(scrape(second.test_client()), "lidiv_clicks_total", kind="positive") == 0


def test_what_waits_in_the_background(app: Flask, engine: FakeEngine) -> None:
    client = app.test_client()
    embedding, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        embedding.set()
        assert go_on.wait(30)

    engine.while_embedding = hold
    batch = copy.deepcopy(golden.load("backend_predict_batch_test")["body"])
    predict(client, batch)
    assert embedding.wait(30)
    predict(client, batch)
    assert value(scrape(client), "lidiv_background_length") == 2
    go_on.set()
    wait_for_background(app)


def test_training_runs_by_state(app: Flask) -> None:
    queue = RunQueue(backend_of(app).store)
    queue.enqueue("shared", RunCause.BUTTON)
    queue.enqueue("other", RunCause.BUTTON)
    assert queue.claim("worker") is not None
    samples = scrape(app.test_client())
    states = {
        state: value(samples, "lidiv_training_runs", state=state)
        for state in ("queued", "running", "done", "failed")
    }
    assert states == {"queued": 1, "running": 1, "done": 0, "failed": 0}


def test_clicks_per_accepted_mask(app: Flask) -> None:
    client = app.test_client()
    needed = [[click(50)], [click(20), click(20.8), click(80)]]
    for number, clicks in enumerate(needed):
        for count in range(1, len(clicks) + 1):
            (result,) = predict(client, body(*clicks[:count]))
        event = copy.deepcopy(golden.load("backend_webhook_ANNOTATION_CREATED")["body"])
        event["annotation"] |= {"id": 10 + number, "result": result["result"]}
        # Label Studio may tell of it twice.
        for _ in range(2):
            assert client.post("/webhook", json=event).status_code == 201
    samples = scrape(client)
    name = "lidiv_clicks_per_accepted_mask"
    assert value(samples, f"{name}_count") == 2
    assert value(samples, f"{name}_sum") == 4
    assert value(samples, f"{name}_bucket", le="1.0") == 1
    assert value(samples, f"{name}_bucket", le="2.0") == 1
    assert value(samples, f"{name}_bucket", le="3.0") == 2
    assert value(samples, f"{name}_bucket", le="+Inf") == 2
    assert value(samples, "lidiv_accepted_proposals_stepped_total") == 1


def test_models_and_the_process(app: Flask) -> None:
    client = app.test_client()
    backend_of(app).engines.promote(FakeEngine("fake-2"))
    samples = scrape(client)
    assert value(samples, "lidiv_model_ready") == 1
    assert value(samples, "lidiv_model_info", version="fake-2", preset="default") == 1
    assert (
        samples["lidiv_model_info", frozenset({("version", "fake-1"), ("preset", "default")})] == 0
    )
    resident = value(samples, "process_resident_memory_bytes")
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    assert resident == pytest.approx(pages * os.sysconf("SC_PAGE_SIZE"), rel=0.2)


def test_without_a_database_the_rest_is_there(
    app: Flask, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from lidiv_backend.learning.store import StoreError

    def fail(*_: Any) -> Any:
        raise StoreError("The database cannot be used.")

    monkeypatch.setattr(backend_of(app).store, "reading", fail)
    samples = scrape(app.test_client())
    assert value(samples, "lidiv_model_ready") == 1
    assert not any(name.startswith("lidiv_training_runs") for name, _ in samples)
    assert "left out" in caplog.text


LOGIN = {"basic_auth_user": "lab", "basic_auth_password": "password"}
HEADERS = {"Authorization": "Basic " + base64.b64encode(b"lab:password").decode()}


@pytest.mark.parametrize(
    ("settings", "without", "with_login"),
    [
        ({}, 200, 200),
        (LOGIN, 401, 200),
        (LOGIN | {"metrics": "open"}, 200, 200),
        (LOGIN | {"metrics": "off"}, 404, 404),
    ],
)
def test_who_may_read_them(
    make_app: Callable[..., Flask], settings: dict[str, str], without: int, with_login: int
) -> None:
    client = make_app(**settings).test_client()
    assert client.get("/metrics").status_code == without
    assert client.get("/metrics", headers=HEADERS).status_code == with_login


def test_nothing_of_what_was_asked_is_in_them(
    make_app: Callable[..., Flask], label_studio: ImageHost
) -> None:
    client = make_app(webhook_secret="hush-hush").test_client()
    client.post("/setup", json=golden.load("backend_setup")["body"])
    predict(client, body(click(50)))
    text = client.get("/metrics").get_data(as_text=True)
    for secret in ("hush-hush", TOKEN, PROJECT, "placeholder", "astronaut"):
        assert secret not in text


def test_gpus_are_looked_at_only_where_they_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from lidiv_backend.server.metrics import of_gpu

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert list(of_gpu()) == []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "memory_reserved", [2_000, 0].__getitem__)
    monkeypatch.setattr(torch.cuda, "memory_allocated", [1_500, 0].__getitem__)
    monkeypatch.setattr(torch.cuda, "mem_get_info", [(7_000, 9_000), (9_000, 9_000)].__getitem__)
    (memory,) = of_gpu()
    kinds = {sample.labels["kind"]: sample.value for sample in memory.samples}
    assert kinds == {"tensors": 1_500, "held": 2_000, "free": 7_000, "total": 9_000}
    assert {sample.labels["device"] for sample in memory.samples} == {"0"}


def test_several_processes_count_together(tmp_path: Path, label_studio: ImageHost) -> None:
    """Whichever process answers, what was counted is that of all of them."""
    settings = {
        "LIDIV_LABEL_STUDIO_URL": label_studio.url,
        "LIDIV_LABEL_STUDIO_TOKEN": TOKEN,
        "LIDIV_WORKERS": "2",
        "TMPDIR": str(tmp_path),
    }
    arguments = ("-c", SETTINGS, "tests.server.served:serve()")
    with running(tmp_path, *arguments, **settings) as url:
        processes = set()
        for number in range(1, 200):
            # A connection each, so that both get some.
            content = body(click(50, id=f"click {number}"))
            assert requests.post(f"{url}/predict", json=content, timeout=300).status_code == 200
            samples = read(requests.get(f"{url}/metrics", timeout=300).text)
            assert value(samples, "lidiv_clicks_total", kind="positive") == number
            processes |= {key for key in samples if key[0] == "lidiv_model_info"}
            if len(processes) == 2:
                break
        assert len(processes) == 2
        assert list(tmp_path.glob("lidiv-metrics-*"))
    assert not list(tmp_path.glob("lidiv-metrics-*"))
