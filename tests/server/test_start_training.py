from __future__ import annotations

from collections.abc import Callable

import pytest
from flask import Flask

from lidiv_backend.learning.registry import SHARED, channel_of
from lidiv_backend.learning.runs import RunQueue, RunState
from lidiv_backend.server.app import backend_of
from tests.labelstudio import golden

START = "backend_webhook_START_TRAINING"


def test_the_button_asks_for_one_run_however_often_it_is_pressed(app: Flask) -> None:
    for _ in range(3):
        assert (
            app.test_client().post("/webhook", json=golden.load(START)["body"]).status_code == 201
        )
    (run,) = RunQueue(backend_of(app).store).runs()
    assert (run.state, run.cause, run.channel) == (RunState.QUEUED, "button", SHARED)
    assert run.project is not None


def test_where_projects_learn_by_themselves_it_is_the_projects_run(
    make_app: Callable[..., Flask], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIDIV_LEARN_SHARED", "false")
    app = make_app()
    app.test_client().post("/webhook", json=golden.load(START)["body"])
    (run,) = RunQueue(backend_of(app).store).runs()
    assert run.project is not None
    assert run.channel == channel_of(run.project)


def test_other_events_start_nothing(app: Flask) -> None:
    app.test_client().post(
        "/webhook", json=golden.load("backend_webhook_ANNOTATION_CREATED")["body"]
    )
    assert RunQueue(backend_of(app).store).runs() == []
