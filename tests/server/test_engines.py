from __future__ import annotations

import threading

import pytest

from lidiv_backend.errors import WeightsError
from lidiv_backend.labelstudio.engine import EngineNotReadyError
from lidiv_backend.server.engines import EngineRegistry
from tests.fake_engine import FakeEngine


def registry(load: object, *, wait_seconds: float = 30) -> EngineRegistry:
    return EngineRegistry(load, name="default", wait_seconds=wait_seconds)  # type: ignore[arg-type]


def test_requests_wait_for_the_model() -> None:
    release = threading.Event()

    def load() -> FakeEngine:
        assert release.wait(30)
        return FakeEngine()

    engines = registry(load)
    engines.start()
    assert (engines.is_ready, engines.version, engines.versions) == (False, "default", ())
    answers: list[str] = []
    waiting = threading.Thread(target=lambda: answers.append(engines.current().version))
    waiting.start()
    release.set()
    waiting.join(30)
    assert answers == ["fake-1"]
    assert engines.is_ready


def test_nobody_waits_forever() -> None:
    engines = registry(FakeEngine, wait_seconds=0)
    with pytest.raises(EngineNotReadyError, match="still being loaded"):
        engines.current()


def test_a_model_that_cannot_be_loaded_says_why() -> None:
    def load() -> FakeEngine:
        raise WeightsError("The weights are gone.", remedy="Run `lidiv weights fetch`.")

    engines = registry(load)
    engines.start()
    with pytest.raises(WeightsError, match="Run `lidiv weights fetch`"):
        engines.current()
    assert isinstance(engines.error, WeightsError)


def test_a_defect_while_loading_is_no_endless_wait() -> None:
    engines = registry(lambda: 1 / 0)
    engines.start()
    with pytest.raises(EngineNotReadyError, match="ZeroDivisionError"):
        engines.current()


def test_the_last_two_versions_are_held() -> None:
    engines = registry(FakeEngine)
    for number in (1, 2, 3):
        engines.promote(FakeEngine(f"fake-{number}"))
    assert engines.versions == ("fake-3", "fake-2")
    assert engines.pinned("fake-2").version == "fake-2"
    assert engines.pinned("fake-1").version == "fake-3"
    assert engines.pinned(None).version == "fake-3"
    engines.promote(FakeEngine("fake-2"))
    assert engines.versions == ("fake-2", "fake-3")
