from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from lidiv_backend.server.app import backend_of, create_app
from lidiv_backend.server.settings import Settings
from tests.fake_engine import FakeEngine
from tests.image_host import Answer, ImageHost, encoded, image_host, pixels

TOKEN = "placeholder-token"
#: Where the recorded tasks have their image, which is 512 x 512.
UPLOAD = "/data/upload/1/5c502c72-astronaut.jpg"


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [name for name in os.environ if name.startswith("LIDIV_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def label_studio() -> Iterator[ImageHost]:
    with image_host() as host:
        host.routes[UPLOAD] = lambda seen: (
            Answer(body=encoded(pixels(512, 512)))
            if seen.authorization == f"Token {TOKEN}"
            else Answer(401)
        )
        yield host


@pytest.fixture
def make_app(
    tmp_path: Path, engine: FakeEngine, label_studio: ImageHost
) -> Iterator[Callable[..., Flask]]:
    """Make applications that are closed at the end."""
    made: list[Flask] = []

    def make(**settings: Any) -> Flask:
        defaults = {
            "state": tmp_path / "state",
            "label_studio_url": label_studio.url,
            "label_studio_token": TOKEN,
        }
        app = create_app(Settings(**(defaults | settings)), engine=engine)
        made.append(app)
        return app

    yield make
    for app in made:
        backend_of(app).close()


@pytest.fixture
def app(make_app: Callable[..., Flask]) -> Flask:
    return make_app()
