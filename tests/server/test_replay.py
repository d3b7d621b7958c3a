"""`lidiv replay` on a database, and on a file without one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lidiv_backend.cli import main
from lidiv_backend.learning.interactions import recorded_interactions
from lidiv_backend.learning.store import Store, StoredAnswer, StoredClick
from lidiv_backend.learning.vault import Vault
from lidiv_backend.learning.worker import StateFolders
from lidiv_backend.predictor import Proposal
from tests.learning.lab import PROJECT, Lab


class Painted:
    """Selects what has the colour of the last positive click: right at the first click."""

    version = "painted"
    predicted = 0
    fails_after = 10**9

    def embed(self, rgb):
        return rgb[..., 1].astype(int)

    def predict(self, image, clicks, previous=None):
        type(self).predicted += 1
        if type(self).predicted > type(self).fails_after:
            raise KeyboardInterrupt
        click = [click for click in clicks if click.positive][-1]
        near = abs(image - image[int(click.y), int(click.x)]) < 10
        return [Proposal(mask=near, score=0.5, head=0)]


class Nothing(Painted):
    """Never selects anything."""

    version = "nothing"

    def embed(self, rgb):
        return np.full(rgb.shape[:2], -100)

    def predict(self, image, clicks, previous=None):
        return [Proposal(mask=np.zeros(image.shape, bool), score=0.5, head=0)]


METHODS = f"good={__name__}:Painted,bad={__name__}:Nothing"


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """Two tasks: of the first, object 0 took three clicks and a step, object 1 was drawn."""
    Painted.predicted, Painted.fails_after = 0, 10**9
    monkeypatch.setenv("LIDIV_STATE", str(tmp_path / "state"))
    (tmp_path / "state").mkdir()
    lab = Lab(Store(f"sqlite:///{tmp_path / 'state' / 'lidiv.sqlite'}"))
    vault = Vault(StateFolders(state=tmp_path / "state").vault)
    for task, clicks in ((0, 3), (1, 2)):
        lab.accept(task)
        item = lab.images[task].objects[0]
        y, x = (int(places.mean()) for places in np.nonzero(item.mask))
        height, width = item.mask.shape
        common = {"x": 100 * (x + 0.5) / width, "y": 100 * (y + 0.5) / height, "positive": True}
        stored = [StoredClick(id=f"c{k}", **common, next=False) for k in range(clicks)]
        stored.append(StoredClick(id="step", **common, next=True))
        lab.store.keep_answer(
            StoredAnswer(
                region_id=f"region-{task}-0",
                project=PROJECT,
                task=task,
                first_click="c0",
                interactive=True,
                to_name="image",
                label="Cell",
                height=height,
                width=width,
                clicks=tuple(stored),
                proposals=(),
                shown=1,
                model_version="v1",
            )
        )
        # The images are there already, so that the command needs no Label Studio.
        digest = vault.put_image(lab.images[task].rgb)
        lab.store.keep_image(PROJECT, task, f"/data/upload/7/{task}.png", digest)
    return lab


def test_interactions_come_out_of_the_database(lab: Lab, tmp_path: Path) -> None:
    vault = Vault(StateFolders(state=tmp_path / "state").vault)
    told: list[str] = []
    found = list(
        recorded_interactions(lab.store, vault, lab.fetch, projects=None, tell=told.append)
    )
    found.sort(key=lambda entry: entry.name)
    assert [(len(entry.clicks), entry.label, entry.project) for entry in found] == [
        (3, "Cell", PROJECT),
        (2, "Cell", PROJECT),
    ]
    np.testing.assert_array_equal(found[0].accepted, lab.images[0].objects[0].mask)
    np.testing.assert_array_equal(found[0].rgb, lab.images[0].rgb)
    click = found[0].clicks[0]
    assert found[0].accepted[int(click.y), int(click.x)]
    assert (told, lab.fetched) == ([], [])


def test_clicks_saved_and_lost(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["replay", "--methods", METHODS, "--out", str(out)]) == 0
    text = capsys.readouterr().out
    # One click would have done where 3 and 2 were made; the other method needs one more.
    assert "| good | all | 2 | 5 | 1.50 (" in text
    assert "| bad | all | 2 | 5 | -1.00 (-1.00 to -1.00) | 0.0 % |" in text
    assert (out / "replay.md").read_text() == text
    values = json.loads((out / "replay.json").read_text())
    assert values["methods"]["good"]["summaries"]["all"]["saved"]["mean"] == 1.5
    assert sorted(mask["saved"] for mask in values["methods"]["good"]["masks"]) == [1, 2]


def test_a_file_needs_no_database(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "clicks.zip"
    assert main(["replay", "--project", PROJECT, "--export", str(file)]) == 0
    assert "2 masks with their clicks" in capsys.readouterr().out
    monkeypatch.setenv("LIDIV_DATABASE_URL", "sqlite:////nowhere/at/all.sqlite")
    assert main(["replay", "--from", str(file), "--methods", METHODS]) == 0
    assert "| good | all | 2 | 5 | 1.50 (" in capsys.readouterr().out


def test_a_stopped_command_goes_on(lab: Lab, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["replay", "--methods", f"good={__name__}:Painted", "--out", str(out)]
    Painted.fails_after = 5  # the first-use call, and one of the two masks with its 3 clicks
    assert main(words) == 130
    Painted.predicted, Painted.fails_after = 0, 10**9
    assert main(words) == 0
    assert Painted.predicted in (1 + 2, 1 + 3)
    Painted.predicted = 0
    assert main([*words, "--accepted-iou", "0.5"]) == 0
    assert Painted.predicted == 1 + 5


def test_refusals(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["replay", "--accepted-iou", "0"]) == 1
    assert main(["replay", "--from", "x.zip", "--project", "7"]) == 1
    assert "not from a file" in capsys.readouterr().err
    monkeypatch.setenv("LIDIV_STATE", str(tmp_path / "empty"))
    assert main(["replay", "--methods", METHODS]) == 1
    assert "There is no accepted mask that was made by clicks" in capsys.readouterr().err
