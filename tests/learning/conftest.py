from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lidiv_backend.learning.store import Store
from lidiv_backend.model import save_model
from tests import tiny
from tests.learning.lab import Lab

MakeWeights = Callable[..., Path]


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [name for name in os.environ if name.startswith("LIDIV_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def make_weights(tmp_path_factory: pytest.TempPathFactory) -> MakeWeights:
    """Make folders of weights of tiny models; each seed is another version."""

    def make(seed: int = 0, *, ranked: bool = True) -> Path:
        folder = tmp_path_factory.mktemp("weights") / "tiny"
        about = dataclasses.replace(
            tiny.description(heads=2, ranked=ranked),
            training={"crop": 32, "images": 2, "targets": 1, "joint": True},
        )
        model = tiny.model(about, seed=seed)
        selection = None if model.selection is None else model.selection.state_dict()
        save_model(folder, about, model.proposal.state_dict(), selection)
        return folder

    return make


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(f"sqlite:///{tmp_path / 'state' / 'lidiv.sqlite'}")
    yield opened
    opened.close()


@pytest.fixture
def lab(store: Store) -> Lab:
    return Lab(store)
