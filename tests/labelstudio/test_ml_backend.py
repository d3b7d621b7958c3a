from __future__ import annotations

import importlib
import os
import subprocess
import sys
import sysconfig
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lidiv_backend.server.backend import Backend, build_backend
from lidiv_backend.server.settings import Settings
from tests.fake_engine import FakeEngine
from tests.labelstudio import golden

ROOT = Path(__file__).parents[2]
MODULE = "lidiv_backend.labelstudio.ml_backend"


def test_the_contract_of_label_studio_ml_1_0_9() -> None:
    environment = os.environ.get("LIDIV_ML_ENV")
    if not environment:
        pytest.skip("LIDIV_ML_ENV names no environment with label-studio-ml 1.0.9")
    # Its own pins fit no current Flask, so it was installed without them, and uses ours.
    paths = os.pathsep.join([str(ROOT), sysconfig.get_path("purelib")])
    arguments = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/labelstudio/ml_contract.py"]
    done = subprocess.run(
        [str(Path(environment) / "bin" / "python"), *arguments],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("LIDIV_")}
        | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed" in done.stdout


class _Base:
    """The parts of the 2.x line's base class that a model meets."""

    def __init__(self, project_id: str | None = None, label_config: str | None = None) -> None:
        self.project_id = project_id or ""
        self.label_config = label_config
        self.kept: dict[str, str] = {}
        self.setup()

    def setup(self) -> None:
        raise NotImplementedError

    def set(self, key: str, value: str) -> None:
        self.kept[key] = value


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    model = types.ModuleType("label_studio_ml.model")
    model.LabelStudioMLBase = _Base  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "label_studio_ml", types.ModuleType("label_studio_ml"))
    monkeypatch.setitem(sys.modules, "label_studio_ml.model", model)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    yield importlib.import_module(MODULE)
    sys.modules.pop(MODULE, None)


@pytest.fixture
def backend(module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    made = build_backend(Settings(state=tmp_path), engine=FakeEngine())
    monkeypatch.setattr(module, "shared_backend", lambda: made)
    yield made
    made.close()


def test_the_2_x_line_passes_project_and_context(module: Any, backend: Backend) -> None:
    body = golden.load("backend_predict_interactive_rectangle")["body"]
    model = module.LiDivBackend(project_id="1.1795328789", label_config=body["label_config"])
    assert model.kept == {"model_version": "fake-1"}
    results = model.predict(body["tasks"], context=body["params"]["context"], login=None)
    assert results == [{"result": [], "score": 0.0, "model_version": "fake-1"}]


def test_the_2_x_line_passes_events_by_position(module: Any, backend: Backend) -> None:
    body = golden.load("backend_webhook_ANNOTATION_CREATED")["body"]
    model = module.LiDivBackend(label_config="<View/>")
    event = body.pop("action")
    model.fit(event, body, additional="ignored")
    assert backend.store.annotation("1.1795328789", 2) is not None
