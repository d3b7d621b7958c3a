from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from flask import Flask

from lidiv_backend.turns import Asker
from tests.fake_engine import FakeEngine
from tests.server.test_app import body, click, failures, only_region, predict
from tests.server.test_metrics import scrape, value


def test_only_the_newest_click_of_an_annotator_is_computed(
    app: Flask, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedding, overtaken, go_on = threading.Event(), threading.Event(), threading.Event()

    def hold() -> None:
        embedding.set()
        assert go_on.wait(60)

    engine.while_embedding = hold
    overtake = Asker.overtake

    def tell(asker: Asker) -> None:
        overtake(asker)
        overtaken.set()

    monkeypatch.setattr(Asker, "overtake", tell)
    clicks = [click(50), click(80)]
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(predict, app.test_client(), body(clicks[0]))
        assert embedding.wait(60)
        # Somebody else's click on the same image, which nobody overtakes.
        other = pool.submit(predict, app.test_client(), body(click(20)))
        second = pool.submit(predict, app.test_client(), body(*clicks))
        assert overtaken.wait(60)
        go_on.set()
        assert first.result(60) == [{"result": [], "score": 0.0, "model_version": "fake-1"}]
        assert only_region(other.result(60))["id"]
        assert only_region(second.result(60))["meta"] == {"text": ["proposal 1 of 4"]}
    # The newer one's two clicks and the other's one; nothing was computed for the older by itself.
    assert len(engine.calls) == 3
    assert len(engine.embedded) == 1
    # Nothing has failed, and somebody counts.
    assert failures(app) == []
    assert value(scrape(app.test_client()), "lidiv_clicks_total", kind="overtaken") == 1
