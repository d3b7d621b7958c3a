from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import pytest

from lidiv_backend.errors import WeightsError
from lidiv_backend.learning.registry import SHARED, ModelRegistry
from lidiv_backend.model import load_model, save_model
from lidiv_backend.predictor import Predictor
from lidiv_backend.server.engines import LOOK_SECONDS, RETRY_SECONDS, EngineRegistry
from lidiv_backend.server.promoted import PromotedModel
from tests import tiny
from tests.fake_engine import FakeEngine


class Clock:
    """Seconds that a test decides on."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Shelf:
    """Something to watch: the version that shall be served."""

    def __init__(self) -> None:
        self.wanted = "fake-1"
        self.loads: list[str] = []
        self.release = threading.Event()
        self.release.set()
        self.fails = False

    def stamp(self) -> str:
        return self.wanted

    def load(self) -> FakeEngine:
        self.loads.append(self.wanted)
        wanted = self.wanted
        assert self.release.wait(30)
        if self.fails:
            raise WeightsError("damaged")
        return FakeEngine(wanted)


def settle() -> None:
    for thread in threading.enumerate():
        if thread.name in ("load-model", "replace-model"):
            thread.join(30)


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def engines(shelf: Shelf, clock: Clock) -> EngineRegistry:
    made = EngineRegistry(shelf.load, name="x", wait_seconds=30, watched=shelf, clock=clock)
    made.start()
    settle()
    return made


def test_a_promotion_is_picked_up_while_requests_go_on(
    engines: EngineRegistry, shelf: Shelf, clock: Clock
) -> None:
    assert engines.current().version == "fake-1"
    shelf.release.clear()
    shelf.wanted = "fake-2"
    clock.now += LOOK_SECONDS
    # It is being loaded, and nobody waits for it.
    assert [engines.current().version for _ in range(3)] == ["fake-1"] * 3
    shelf.release.set()
    settle()
    assert engines.current().version == "fake-2"
    assert engines.pinned("fake-1").version == "fake-1"
    assert shelf.loads == ["fake-1", "fake-2"]


def test_it_does_not_look_at_every_request(
    engines: EngineRegistry, shelf: Shelf, clock: Clock
) -> None:
    clock.now += LOOK_SECONDS
    engines.current()
    shelf.wanted = "fake-2"
    engines.current()
    settle()
    assert engines.current().version == "fake-1"
    clock.now += LOOK_SECONDS
    engines.current()
    settle()
    assert engines.current().version == "fake-2"


def test_what_cannot_be_loaded_changes_nothing_and_is_tried_again(
    engines: EngineRegistry, shelf: Shelf, clock: Clock
) -> None:
    shelf.fails = True
    shelf.wanted = "fake-2"
    for _ in range(3):
        clock.now += LOOK_SECONDS
        assert engines.current().version == "fake-1"
        settle()
    assert shelf.loads == ["fake-1", "fake-2"]
    shelf.fails = False
    clock.now += RETRY_SECONDS
    engines.current()
    settle()
    assert engines.version == "fake-2"


def test_a_promotion_heals_a_server_without_a_model(shelf: Shelf, clock: Clock) -> None:
    shelf.fails = True
    engines = EngineRegistry(shelf.load, name="x", wait_seconds=30, watched=shelf, clock=clock)
    engines.start()
    settle()
    with pytest.raises(WeightsError):
        engines.current()
    shelf.fails = False
    shelf.wanted = "fake-2"
    clock.now += RETRY_SECONDS
    with contextlib.suppress(WeightsError):
        engines.current()  # begins to load; it may even be there already
    settle()
    assert engines.current().version == "fake-2"


@pytest.fixture
def models(tmp_path: Path) -> ModelRegistry:
    about = tiny.description(heads=2, ranked=True)
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        save_model(folder, about, tiny.model(about, seed=seed).proposal.state_dict(), None)
    return ModelRegistry(tmp_path / "state", base=tmp_path / "0")


def test_it_loads_what_the_pointer_names(models: ModelRegistry, tmp_path: Path) -> None:
    promoted = PromotedModel(models, SHARED, device="cpu")
    before = promoted.stamp()
    assert promoted.load().version == load_model(tmp_path / "0").version
    version = models.add(tmp_path / "1", {})
    models.promote(SHARED, version)
    assert promoted.stamp() != before
    assert promoted.load().version == version


def test_it_is_warm_when_it_is_put_in_use(
    models: ModelRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    warmed = []
    monkeypatch.setattr(Predictor, "warm_up", lambda predictor: warmed.append(predictor.version))
    assert warmed == [PromotedModel(models, SHARED, device="cpu").load().version]


def test_a_damaged_version_leaves_the_preset(models: ModelRegistry, tmp_path: Path) -> None:
    version = models.add(tmp_path / "1", {})
    models.promote(SHARED, version)
    (Path(models.source(version)) / "f.safetensors").write_bytes(b"")
    promoted = PromotedModel(models, SHARED, device="cpu")
    with pytest.raises(WeightsError):
        promoted.load()
    assert promoted.load_any().version == load_model(tmp_path / "0").version
