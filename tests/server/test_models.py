from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lidiv_backend.cli import main
from lidiv_backend.learning.registry import BASE, SHARED, ModelRegistry
from lidiv_backend.learning.store import Store, StoredAnnotation
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


OWN = "project-7.1700000000"


@pytest.fixture
def annotated(models: ModelRegistry, tmp_path: Path) -> Iterator[Store]:
    """Project 7 has annotations, and nothing of its own in use."""
    store = Store(f"sqlite:///{tmp_path}/state/lidiv.sqlite")
    annotation = StoredAnnotation(
        project="7.1700000000",
        annotation=1,
        task=1,
        task_data={"image": "/data/a.jpg"},
        result=(),
        was_cancelled=False,
        completed_by=1,
        lead_time=1.0,
    )
    store.keep_annotations(annotation.project, [annotation], deleted=[])
    yield store
    store.close()


@pytest.fixture
def version(models: ModelRegistry, tmp_path: Path) -> str:
    return add(models, tmp_path / "new", 1)


@pytest.mark.parametrize("name", ["7", "7.1700000000", OWN])
def test_a_project_of_its_own(
    models: ModelRegistry,
    annotated: Store,
    version: str,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    assert main(["models", "promote", version, "--project", name]) == 0
    assert models.pointer(OWN).version == version
    assert models.pointer(SHARED).version == BASE
    assert models.channels() == [OWN]
    assert main(["models", "list"]) == 0
    assert f"{OWN}: {version} is in use" in capsys.readouterr().out
    assert main(["models", "rollback", "--project", name]) == 0
    assert models.pointer(OWN).version == BASE


@pytest.mark.parametrize("name", ["8", "7.1", "project", "", "shared"])
def test_a_project_that_is_not_there_is_refused(
    models: ModelRegistry,
    annotated: Store,
    version: str,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    assert main(["models", "promote", version, "--project", name]) == 1
    assert OWN in capsys.readouterr().err
    assert models.channels() == []


def test_two_projects_of_one_number_are_told_apart_by_their_names(
    models: ModelRegistry,
    annotated: Store,
    version: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["models", "promote", version, "--project", OWN]) == 0
    models.promote("project-7.1800000000", version)
    assert main(["models", "promote", BASE, "--project", "7"]) == 1
    assert "2 projects" in capsys.readouterr().err
    assert main(["models", "promote", BASE, "--project", "7.1800000000"]) == 0
    assert models.pointer(OWN).version == version
