"""Requests that nobody would send: every answer is as the description says, and nothing grows."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from flask import Flask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.schemas import BaseSchema
from werkzeug.test import Client, TestResponse

from lidiv_backend.learning.store import MAX_FAILURES
from lidiv_backend.server.app import backend_of, create_app
from lidiv_backend.server.openapi import OPERATIONS
from lidiv_backend.server.settings import Settings
from tests.fake_engine import FakeEngine
from tests.image_host import ImageHost
from tests.labelstudio import golden
from tests.server.app_elsewhere import elsewhere
from tests.server.conftest import TOKEN

#: Of each kind; two kinds are 500 requests, and 10,000 in the long run.
FEW, MANY = 250, 5_000
CACHE_BYTES = 5_000_000
HEALTH = tuple(HealthCheck)
MODES = tuple(schemathesis.GenerationMode)

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["Object", "image", "kp", "labels", "keypoint", "brushlabels", "s3://b/a"])
    | st.sampled_from(["file:///etc/passwd", "/data/../a", "http://169.254.169.254/", "\x00"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)


class Fuzzed:
    """An application, here or elsewhere, and what it must never answer."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.client = Client(app)
        self.schema: BaseSchema = schemathesis.openapi.from_wsgi("/openapi.json", app)
        self.count = 0

    def open(self, method: str, path: str, **options: Any) -> None:
        response = self.client.open(path, method=method, **options)
        self.count += 1
        if path != "/metrics" or response.status_code != 200:
            _ = json.loads(response.data)
        operation = self.schema[path][method]
        assert str(response.status_code) in operation.definition.raw["responses"], response.text
        operation.validate_response(response)
        assert response.headers["X-Request-ID"]
        self._unless_defect(response)

    @staticmethod
    def _unless_defect(response: TestResponse) -> None:
        if response.status_code >= 400:
            assert response.get_json()["error"] != "defect"


@dataclass(frozen=True)
class Kept:
    """What an application holds."""

    images: int
    proposals: int
    failures: int
    metrics: int

    def require_bounds(self) -> None:
        """Make sure that it stays within its limits."""
        assert self.images + self.proposals <= CACHE_BYTES
        assert self.failures <= MAX_FAILURES
        # Routes, statuses, stages and kinds are a few; none of them comes from a request.
        assert self.metrics < 1_000


def look(app: Flask) -> Kept:
    """Count it, once nothing goes on in the background."""
    backend = backend_of(app)
    done = threading.Event()
    while not backend.background.submit(done.set):
        pass
    assert done.wait(60)
    return Kept(
        images=backend.service._images._cache.size,
        proposals=backend.service._interactions._memo.size,
        failures=len(backend.store.recent_failures(limit=10**6)),
        metrics=len(app.test_client().get("/metrics").text.splitlines()),
    )


def make_elsewhere(**settings: Any) -> Flask:
    """Make the application in another process."""
    app = create_app(Settings(**settings), engine=FakeEngine())
    app.testing = False
    return app


def forget(app: Flask) -> None:
    """What the fake engine remembers would grow with each click."""
    engine = backend_of(app).engines.current()
    assert isinstance(engine, FakeEngine)
    engine.forget()


@pytest.fixture
def fuzzed(make_app: Callable[..., Flask]) -> Fuzzed:
    app = make_app(requests_per_second=0, cache_bytes=CACHE_BYTES)
    app.testing = False
    return Fuzzed(app)


def described_requests(fuzzed: Fuzzed, examples: int) -> None:
    """Requests made from the description, half of them against it."""
    operations = [fuzzed.schema[one.path][one.method.upper()] for one in OPERATIONS]
    # Where something is sent, much can be wrong.
    weighted = [one for one in operations for _ in range(8 if one.method == "post" else 1)]
    strategies = [one.as_strategy(generation_mode=mode) for one in weighted for mode in MODES]

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=HEALTH)
    @given(st.one_of(strategies))
    def ask(case: schemathesis.Case) -> None:
        sent = case.as_transport_kwargs()
        sent.pop("path")
        fuzzed.open(sent.pop("method").upper(), case.path, **sent)

    ask()


def nodes(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where everything in a JSON document is."""
    children = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    return [path, *(found for key, value in children for found in nodes(value, (*path, key)))]


@st.composite
def mutated(draw: st.DrawFn) -> tuple[str, bytes]:
    """A recorded request with parts replaced, left out or doubled, or with a broken text."""
    recorded = golden.load(draw(st.sampled_from(golden.POSTED)))
    body = recorded["body"]
    for _ in range(draw(st.integers(1, 3))):
        places = nodes(body)[1:]
        if not places:
            break
        *path, last = draw(st.sampled_from(places))
        parent = body
        for key in path:
            parent = parent[key]
        kind = draw(st.sampled_from(["replaced", "replaced", "left out", "doubled"]))
        if kind == "replaced":
            parent[last] = draw(JSON)
        elif kind == "left out":
            del parent[last]
        elif isinstance(parent, list):
            parent.append(parent[last])
    text = json.dumps(body).encode()
    if draw(st.integers(0, 9)) == 0:
        place = draw(st.integers(0, len(text)))
        text = text[:place] + draw(st.binary(max_size=3))
    return recorded["path"], text


def mutated_requests(fuzzed: Fuzzed, examples: int) -> None:
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=HEALTH)
    @given(mutated())
    def ask(request: tuple[str, bytes]) -> None:
        path, data = request
        fuzzed.open("POST", path, data=data, content_type="application/json")

    ask()


def test_requests_made_from_the_description(fuzzed: Fuzzed) -> None:
    described_requests(fuzzed, FEW)
    assert fuzzed.count >= FEW
    look(fuzzed.app).require_bounds()


def test_recorded_requests_with_anything_in_them(fuzzed: Fuzzed) -> None:
    mutated_requests(fuzzed, FEW)
    assert fuzzed.count >= FEW
    look(fuzzed.app).require_bounds()


@pytest.mark.soak
def test_ten_thousand_requests_leave_nothing_behind(
    tmp_path: Path, label_studio: ImageHost
) -> None:
    settings = {
        "state": tmp_path / "state",
        "label_studio_url": label_studio.url,
        "label_studio_token": TOKEN,
        "requests_per_second": 0,
        "cache_bytes": CACHE_BYTES,
    }
    # Whoever makes up the requests remembers them all: the server's memory is another process'.
    with elsewhere(make_elsewhere, after=forget, look=look, **settings) as app:
        fuzzed = Fuzzed(app)
        # Caches fill, and libraries load what they load late.
        described_requests(fuzzed, FEW)
        mutated_requests(fuzzed, FEW)
        before, threads = app.memory()
        described_requests(fuzzed, MANY)
        mutated_requests(fuzzed, MANY)
        assert fuzzed.count >= 2 * (FEW + MANY)
        app.look().require_bounds()
        after, threads_after = app.memory()
    print(f"{fuzzed.count} requests, {before / 1e6:.0f} MB before, {after / 1e6:.0f} MB after")
    assert threads_after <= threads + 2
    assert after < before + 50_000_000


def test_the_description_is_of_this_application(fuzzed: Fuzzed) -> None:
    served = {
        (rule.rule, method.lower())
        for rule in fuzzed.app.url_map.iter_rules()
        for method in rule.methods or ()
        if rule.endpoint.startswith("lidiv.") and method not in ("HEAD", "OPTIONS")
    }
    described = {(one.path, one.method) for one in OPERATIONS}
    # The pages are for people.
    assert served - described <= {("/", "get")}
    assert described <= served


def test_recorded_requests_are_as_described(fuzzed: Fuzzed) -> None:
    """Otherwise what is made from the description would be unlike anything that is really sent."""
    import jsonschema

    description = fuzzed.app.test_client().get("/openapi.json").get_json()
    for name in golden.POSTED:
        recorded = golden.load(name)
        operation = description["paths"].get(recorded["path"], {}).get("post")
        if operation is None or "requestBody" not in operation:
            continue
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        defined = {"components": description["components"], **schema}
        errors = [
            list(error.absolute_path)
            for error in jsonschema.Draft202012Validator(defined).iter_errors(recorded["body"])
        ]
        # The same as null by the parser's leave, not by the schema's.
        assert all(path[-1] in ("context", "extra_params", "params") for path in errors), errors
