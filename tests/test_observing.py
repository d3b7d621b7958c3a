"""Stages and caches tell whoever measures, in the thread that works and nowhere else."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from lidiv_backend.clicks import Click
from lidiv_backend.observing import current_observer, observed_by, stage
from tests import tiny


class Notes:
    def __init__(self) -> None:
        self.stages: list[str] = []
        self.caches: list[tuple[str, bool]] = []

    def stage_took(self, stage: str, seconds: float) -> None:
        assert seconds >= 0
        self.stages.append(stage)

    def cache_asked(self, cache: str, *, hit: bool) -> None:
        self.caches.append((cache, hit))

    def click_dropped(self) -> None:
        raise AssertionError


def test_a_predictor_tells_its_stages() -> None:
    predictor, notes = tiny.predictor(tiny.description()), Notes()
    image = np.zeros((32, 48, 3), np.uint8)
    with observed_by(notes):
        for _ in range(2):
            embedding = predictor.embed(image)
            predictor.predict(embedding, [Click(x=20, y=10, positive=True)])
    assert notes.stages == ["embed", "propose", "select", "propose", "select"]
    assert notes.caches == [("embeddings", False), ("embeddings", True)]
    predictor.embed(image)
    assert len(notes.caches) == 2


def test_a_stage_that_fails_took_time_too() -> None:
    notes = Notes()
    with observed_by(notes), pytest.raises(ZeroDivisionError), stage("embed"):
        _ = 1 / 0
    assert notes.stages == ["embed"]


def test_nobody_waits_for_a_device_that_nobody_measures() -> None:
    waited: list[int] = []
    with stage("embed", settle=lambda: waited.append(1)):
        pass
    assert waited == []
    with observed_by(Notes()), stage("embed", settle=lambda: waited.append(1)):
        pass
    assert waited == [1]


def test_each_thread_has_its_own_observer() -> None:
    with observed_by(Notes()), ThreadPoolExecutor(1) as pool:
        assert pool.submit(current_observer).result() is None
