"""Webhooks that nobody heard, made good through Label Studio's API."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from flask import Flask

from lidiv_backend.learning.settings import LearningSettings
from lidiv_backend.learning.store import Store
from lidiv_backend.server.app import backend_of
from lidiv_backend.server.settings import Settings
from lidiv_backend.server.worker import reconcile_all, rounds
from tests.labelstudio import golden
from tests.learning.lab import PROJECT
from tests.learning.robustness import service as lab
from tests.learning.robustness.service import SECRET, LabelStudio

HEADERS = {"X-LiDiv-Secret": SECRET}


@pytest.fixture
def store(app: Flask) -> Store:
    return backend_of(app).store


def connect(app: Flask) -> None:
    body = golden.load("backend_setup")["body"] | {"project": PROJECT}
    assert app.test_client().post("/setup", json=body).status_code == 200


def annotate(studio: LabelStudio, task: int, **changes: Any) -> dict[str, Any]:
    """Somebody annotates in Label Studio; gives the webhook, which may or may not arrive."""
    told = lab.annotation_event(1000 + task, task)
    if task not in studio.fake.tasks:
        studio.fake.add_task(studio.project, task, told["task"]["data"])
    fields = told["annotation"] | changes
    annotation = studio.fake.annotate(fields.pop("task"), fields.pop("id"), **fields)
    return told | {"annotation": annotation}


def hear(app: Flask, body: dict[str, Any]) -> None:
    assert app.test_client().post("/webhook", json=body, headers=HEADERS).status_code == 201


def accepted(store: Store) -> list[int]:
    return sorted(found.annotation for found in store.accepted_annotations([PROJECT]))


def test_what_happened_while_the_backend_was_down_is_made_good(
    app: Flask, store: Store, studio: LabelStudio, settings: Settings
) -> None:
    connect(app)
    # More than a page of them, of which one in three arrives.
    for task in range(60):
        body = annotate(studio, task)
        if task % 3 == 0:
            hear(app, body)
    annotate(studio, 0, lead_time=9.0, was_cancelled=True)  # skipped since
    annotate(studio, 3, result=[])  # changed since
    studio.fake.delete_annotation(1006)
    reconcile_all(settings, store)
    assert accepted(store) == [1000 + task for task in range(60) if task not in (0, 6)]
    changed = store.annotation(PROJECT, 1003)
    assert changed is not None
    assert list(changed.result) == []
    assert store.recent_failures() == []
    # A second time there is nothing to do, and a late webhook changes nothing.
    before = [store.annotation(PROJECT, 1000 + task) for task in range(60)]
    reconcile_all(settings, store)
    hear(app, annotate(studio, 7))
    assert [store.annotation(PROJECT, 1000 + task) for task in range(60)] == before


def test_it_is_done_at_the_start_and_again_and_again(
    app: Flask, store: Store, studio: LabelStudio, settings: Settings
) -> None:
    connect(app)
    hear(app, annotate(studio, 0))
    annotate(studio, 1)
    studio.fake.away = True
    stop, seen = threading.Event(), []

    def compare() -> None:
        reconcile_all(settings, store)
        seen.append(accepted(store))
        studio.fake.away = False  # from the second time on Label Studio is there
        if len(seen) == 2:
            annotate(studio, 2)
        if len(seen) == 3:
            stop.set()

    often = LearningSettings(reconcile_minutes=1e-9, poll_seconds=1e-3)
    rounds(lambda: False, compare, often, stop)
    assert seen == [[1000], [1000, 1001], [1000, 1001, 1002]]
    (failure,) = store.recent_failures()
    assert (failure.route, failure.kind) == ("reconcile", "reconcile")
    assert "LIDIV_LABEL_STUDIO_URL" in failure.remedy
