from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask

from lidiv_backend.server.app import backend_of, create_app
from lidiv_backend.server.settings import Settings
from tests.fake_engine import FakeEngine
from tests.labelstudio.fake_label_studio import TOKEN
from tests.learning.robustness.service import SECRET, LabelStudio, label_studio


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("LIDIV_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def studio() -> Iterator[LabelStudio]:
    with label_studio() as made:
        yield made


@pytest.fixture
def settings(tmp_path: Path, studio: LabelStudio) -> Settings:
    return Settings(
        state=tmp_path / "state",
        label_studio_url=studio.url,
        label_studio_token=TOKEN,
        webhook_secret=SECRET,
    )


@pytest.fixture
def app(settings: Settings) -> Iterator[Flask]:
    """The real application over the real store."""
    made = create_app(settings, engine=FakeEngine())
    yield made
    backend_of(made).close()
