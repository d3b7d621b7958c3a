from __future__ import annotations

import threading
from collections.abc import Hashable

import pytest

from lidiv_backend.labelstudio.engine import Engine
from lidiv_backend.server.engines import EngineRegistry, ProjectEngines
from tests.fake_engine import FakeEngine


class Promotions:
    """What was promoted for each project; engines are loaded when `gate` is open."""

    def __init__(self) -> None:
        self.versions: dict[str, str] = {}
        self.gate = threading.Event()
        self.gate.set()
        self.loaded: list[str] = []

    def of(self, project: str) -> Promoted:
        return Promoted(self, project)


class Promoted:
    def __init__(self, promotions: Promotions, project: str) -> None:
        self._promotions = promotions
        self._project = project

    def stamp(self) -> Hashable:
        version = self._promotions.versions.get(self._project)
        return () if version is None else (version,)

    def load(self) -> Engine:
        assert self._promotions.gate.wait(10)
        version = self._promotions.versions[self._project]
        self._promotions.loaded.append(version)
        return FakeEngine(version=version)

    load_any = load


@pytest.fixture
def promotions() -> Promotions:
    return Promotions()


@pytest.fixture
def engines(promotions: Promotions) -> ProjectEngines:
    default = EngineRegistry(lambda: FakeEngine(), name="preset", wait_seconds=10)
    default.promote(FakeEngine(version="preset"))
    return ProjectEngines(default, promotions.of, wait_seconds=10, limit=2)


def test_a_project_is_answered_by_its_own_version(
    engines: ProjectEngines, promotions: Promotions
) -> None:
    promotions.versions = {"1.5": "of-1", "2.5": "of-2"}
    assert engines.of("1.5").current().version == "of-1"
    assert engines.of("2.5").current().version == "of-2"
    assert engines.of("3.5").current().version == "preset"


def test_the_preset_answers_until_the_first_own_version_is_loaded(
    engines: ProjectEngines, promotions: Promotions
) -> None:
    assert engines.of("1.5").current().version == "preset"
    promotions.gate.clear()
    promotions.versions["1.5"] = "of-1"
    assert engines.of("1.5").current().version == "preset"
    promotions.gate.set()
    own = engines._own["1.5"]
    assert own.current().version == "of-1"
    assert engines.of("1.5") is own


def test_after_a_start_nobody_is_answered_by_another_version(
    engines: ProjectEngines, promotions: Promotions
) -> None:
    promotions.gate.clear()
    promotions.versions["1.5"] = "of-1"
    threading.Timer(0.05, promotions.gate.set).start()
    assert engines.of("1.5").current().version == "of-1"


def test_memory_is_bounded(engines: ProjectEngines, promotions: Promotions) -> None:
    promotions.versions = {f"{number}.5": f"of-{number}" for number in range(4)}
    for number in range(4):
        assert engines.of(f"{number}.5").current().version == f"of-{number}"
    assert engines.held == ("3.5", "2.5")
    # Let go, and loaded again when it is asked for.
    assert engines.of("0.5").current().version == "of-0"
    assert promotions.loaded.count("of-0") == 2


def test_an_own_version_that_changes_is_loaded(
    engines: ProjectEngines, promotions: Promotions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lidiv_backend.server.engines.LOOK_SECONDS", 0.0)
    promotions.versions["1.5"] = "first"
    own = engines.of("1.5")
    assert own.current().version == "first"
    replaced = threading.Event()
    promote = own.promote

    def noted(engine: Engine) -> None:
        promote(engine)
        replaced.set()

    monkeypatch.setattr(own, "promote", noted)
    promotions.versions["1.5"] = "second"
    own.current()
    assert replaced.wait(10)
    assert engines.of("1.5").current().version == "second"
    assert own.pinned("first").version == "first"
