from __future__ import annotations

from pathlib import Path

import pytest

from lidiv_backend.cli import main
from lidiv_backend.learning.registry import BASE, SHARED, ModelRegistry
from lidiv_backend.model import save_model
from tests import tiny


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelRegistry:
    monkeypatch.setenv("LIDIV_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("LIDIV_PRESET", str(tmp_path / "preset"))
    about = tiny.description(heads=2, ranked=True)
    save_model(tmp_path / "preset", about, tiny.model(about).proposal.state_dict(), None)
    return ModelRegistry(tmp_path / "state", base=tmp_path / "preset")


def add(models: ModelRegistry, folder: Path, seed: int) -> str:
    about = tiny.description(heads=2, ranked=True)
    save_model(folder, about, tiny.model(about, seed=seed).proposal.state_dict(), None)
    return models.add(folder, {"verdict": f"seed {seed}"})


def test_from_list_to_rollback(
    models: ModelRegistry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "list"]) == 0
    assert f"the preset {tmp_path / 'preset'} is in use" in capsys.readouterr().out
    version = add(models, tmp_path / "new", 1)
    assert main(["models", "promote", version]) == 0
    assert models.pointer(SHARED).version == version
    assert main(["models", "list"]) == 0
    assert f"{version}  " in capsys.readouterr().out
    assert main(["models", "show", version]) == 0
    assert "seed 1" in capsys.readouterr().out
    assert main(["models", "rollback"]) == 0
    assert models.pointer(SHARED).version == BASE


def test_a_version_that_is_not_there_says_where_to_look(
    models: ModelRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "promote", "nowhere"]) == 1
    assert "lidiv models list" in capsys.readouterr().err


def test_a_project_of_its_own(models: ModelRegistry, tmp_path: Path) -> None:
    version = add(models, tmp_path / "new", 1)
    assert main(["models", "promote", version, "--project", "7.100"]) == 0
    assert models.pointer("project-7.100").version == version
    assert models.pointer(SHARED).version == BASE
