"""The mean of several f."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lidiv_backend.cli import main
from lidiv_backend.model import load_model, read_description, record_results
from lidiv_backend.training.card import write_card
from tests import tiny

ABOUT = tiny.description()


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    return [str(tiny.saved(tmp_path / f"{seed}", ABOUT, seed=seed)) for seed in range(3)]


def arrays(folder: str | Path, network: str) -> dict[str, np.ndarray]:
    state = getattr(load_model(folder), network).state_dict()
    return {name: tensor.numpy() for name, tensor in state.items()}


def test_f_is_the_mean_and_g_is_of_the_last(folders: list[str], tmp_path: Path) -> None:
    record_results(Path(folders[-1]), {"GrabCut": {"clicks": 1}})
    assert main(["average", *folders, "--out", str(tmp_path / "mean")]) == 0
    found = arrays(tmp_path / "mean", "proposal")
    several = [arrays(folder, "proposal") for folder in folders]
    for name, value in found.items():
        np.testing.assert_allclose(value, sum(each[name] for each in several) / 3, atol=1e-6)
    assert any((found[name] != value).any() for name, value in several[-1].items())
    for name, value in arrays(folders[-1], "selection").items():
        np.testing.assert_array_equal(arrays(tmp_path / "mean", "selection")[name], value)
    # What it scores nobody knows yet.
    assert read_description(tmp_path / "mean").results == {}


def test_g_may_be_of_others(folders: list[str], tmp_path: Path) -> None:
    words = ["average", *folders[:2], "--selection", folders[2], "--out", str(tmp_path / "mean")]
    assert main(words) == 0
    several = [arrays(folder, "proposal") for folder in folders[:2]]
    for name, value in arrays(tmp_path / "mean", "proposal").items():
        np.testing.assert_allclose(value, sum(each[name] for each in several) / 2, atol=1e-6)
    for name, value in arrays(folders[2], "selection").items():
        np.testing.assert_array_equal(arrays(tmp_path / "mean", "selection")[name], value)


def test_of_what_it_is_the_mean_is_told(folders: list[str], tmp_path: Path) -> None:
    assert main(["average", *folders, "--out", str(tmp_path / "mean")]) == 0
    versions = [load_model(folder).version for folder in folders]
    assert read_description(tmp_path / "mean").training["mean_of"] == versions
    named = ", ".join(f"`{version}`" for version in versions)
    assert f"the mean of those of {named}." in write_card(tmp_path / "mean").read_text()


@pytest.mark.parametrize("other", [[], ["other"]])
def test_what_has_no_mean_is_refused(
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], other: list[str]
) -> None:
    tiny.saved(tmp_path / "other", tiny.description(pyramid=True))
    words = ["average", folders[0], *(str(tmp_path / name) for name in other)]
    assert main([*words, "--out", str(tmp_path / "mean")]) == 1
    assert "Name" in capsys.readouterr().err
    assert not (tmp_path / "mean").exists()
