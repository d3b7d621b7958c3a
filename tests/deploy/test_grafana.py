"""The dashboard asks for nothing that the application does not export."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from prometheus_client.parser import text_string_to_metric_families

from lidiv_backend.server.app import backend_of, create_app
from lidiv_backend.server.metrics import of_gpu
from lidiv_backend.server.settings import Settings
from tests.fake_engine import FakeEngine

DASHBOARD = Path(__file__).parents[2] / "deploy" / "grafana" / "lidiv.json"
#: Words of PromQL that are no metrics, beside what stands in braces, brackets and quotes.
WORDS = {"by", "sum", "max", "rate", "increase", "delta", "histogram_quantile", "label_values"}


@pytest.fixture
def exported(tmp_path: Path) -> Iterator[dict[str, set[str]]]:
    """Names of samples -> names of their labels."""
    app = create_app(Settings(state=tmp_path), engine=FakeEngine())
    metrics = backend_of(app).metrics
    metrics.stage_took("embed", 1.0)
    metrics.cache_asked("images", hit=True)
    metrics.clicked("next")
    metrics.failed("bad click")
    yield _names(app)
    backend_of(app).close()


def _names(app: Flask) -> dict[str, set[str]]:
    names: dict[str, set[str]] = {}
    client = app.test_client()
    client.get("/health")
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            names.setdefault(sample.name, set()).update(sample.labels)
    # There is no GPU where this runs; tests/server/test_metrics.py looks at what is said of one.
    assert list(of_gpu()) == []
    names["lidiv_gpu_memory_bytes"] = {"device", "kind"}
    return names


def _panels() -> list[dict[str, Any]]:
    found = json.loads(DASHBOARD.read_text())["panels"]
    return [panel for panel in found if panel["type"] != "row"]


def _bare(expression: str) -> str:
    """An expression without labels, ranges and grouping."""
    expression = re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", expression)
    return re.sub(r"\bby \([^)]*\)", "by", expression)


def test_every_metric_of_the_dashboard_is_exported(exported: dict[str, set[str]]) -> None:
    asked = set()
    for panel in _panels():
        for target in panel["targets"]:
            asked |= set(re.findall(r"[a-z_][a-z_0-9]*", _bare(target["expr"]))) - WORDS
    assert len(asked) > 15
    assert asked <= set(exported), asked - set(exported)


def test_every_label_of_the_dashboard_is_exported(exported: dict[str, set[str]]) -> None:
    # Prometheus itself says which replica it asked.
    for panel in _panels():
        for target in panel["targets"]:
            expression = target["expr"]
            metrics = set(re.findall(r"[a-z_][a-z_0-9]*", _bare(expression))) & set(exported)
            known = {"instance"}.union(*(exported[name] for name in metrics))
            used = set(re.findall(r"(\w+)\s*=", re.sub(r"==", "", expression)))
            for group in re.findall(r"by \(([^)]*)\)", expression):
                used |= {label.strip() for label in group.split(",")}
            used |= set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert used <= known, (panel["title"], used - known)


def test_every_exported_metric_of_ours_is_on_the_dashboard(exported: dict[str, set[str]]) -> None:
    text = DASHBOARD.read_text()
    names = {re.sub(r"_(bucket|count|sum|created|total)$", "", name) for name in exported}
    missing = {name for name in names if name.startswith("lidiv_") and name not in text}
    assert missing == set()


def test_panels_do_not_overlap() -> None:
    cells = [
        (x, y)
        for panel in json.loads(DASHBOARD.read_text())["panels"]
        for at in [panel["gridPos"]]
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
