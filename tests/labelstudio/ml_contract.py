"""What `label-studio-ml` 1.0.9 asks of a model; run by test_ml_backend.py where it is installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from label_studio_ml import api
from label_studio_ml.model import LabelStudioMLBase

from lidiv_backend.labelstudio import ml_backend
from lidiv_backend.server.backend import Backend, build_backend
from lidiv_backend.server.settings import Settings
from tests.fake_engine import FakeEngine
from tests.image_host import Answer, ImageHost, encoded, image_host, pixels
from tests.labelstudio import golden

TOKEN = "placeholder-token"


@pytest.fixture
def label_studio() -> Iterator[ImageHost]:
    with image_host() as host:
        host.routes["/data/upload/1/5c502c72-astronaut.jpg"] = lambda seen: (
            Answer(body=encoded(pixels(512, 512)))
            if seen.authorization == f"Token {TOKEN}"
            else Answer(401)
        )
        yield host


@pytest.fixture
def backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    made = build_backend(Settings(state=tmp_path / "state"), engine=FakeEngine())
    monkeypatch.setattr(ml_backend, "shared_backend", lambda: made)
    yield made
    made.close()


@pytest.fixture
def client(tmp_path: Path, backend: Backend) -> FlaskClient:
    (tmp_path / "models").mkdir()
    app = api.init_app(ml_backend.LiDivBackend, model_dir=str(tmp_path / "models"))
    return app.test_client()


@pytest.fixture
def ready(client: FlaskClient, label_studio: ImageHost) -> FlaskClient:
    setup = golden.load("backend_setup")["body"]
    setup |= {"hostname": label_studio.url, "access_token": TOKEN}
    assert client.post("/setup", json=setup).status_code == 200
    return client


def predict(client: FlaskClient, name: str) -> Any:
    response = client.post("/predict", json=golden.load(name)["body"])
    assert response.status_code == 200, response.get_data(as_text=True)
    return response.get_json()["results"]


def test_it_is_a_model_of_the_package() -> None:
    assert issubclass(ml_backend.LiDivBackend, LabelStudioMLBase)


def test_it_answers_an_interactive_request(ready: FlaskClient, backend: Backend) -> None:
    (result,) = predict(ready, "backend_predict_interactive")
    assert result["model_version"] == "fake-1"
    (region,) = result["result"]
    assert region["meta"] == {"text": ["proposal 1 of 4"]}
    assert backend.store.answer(region["id"]) is not None


def test_it_answers_a_batch(ready: FlaskClient) -> None:
    (result,) = predict(ready, "backend_predict_batch_test")
    assert result["result"] == []


def test_an_error_is_an_error_and_is_kept(ready: FlaskClient, backend: Backend) -> None:
    body = golden.load("backend_predict_interactive")["body"]
    body["params"]["context"]["result"][0]["value"]["x"] = 200
    assert ready.post("/predict", json=body).status_code == 500
    (failure,) = backend.store.recent_failures()
    assert failure.kind == "bad click"


def test_events_are_written_down(ready: FlaskClient, backend: Backend) -> None:
    body = golden.load("backend_webhook_ANNOTATION_CREATED")["body"]
    event = body.pop("action")
    model = api._manager._current_model.model
    assert model.process_event(event, body, "1", {"workdir": "unused"}) == {}
    assert [action for action, _ in backend.store.events()] == ["ANNOTATION_CREATED"]
