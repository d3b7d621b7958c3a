"""The model card says what `model.json` says, and nothing that it does not."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from lidiv_backend.model import InferenceConfig, load_model, record_results, save_model, write_model
from lidiv_backend.training.card import write_card
from lidiv_backend.training.config import MOST_EARLIER, PRESETS
from tests import tiny

TRAINING = {
    **PRESETS["paper"].to_json(),
    "steps": 3000,
    "steps_done": 2500,
    "seconds": 5400,
    "device": "cpu",
    "processes": 1,
    "precision": "no",
    "data": "pool",
    "data_masks": {"voc instance": 3086, "mystery part": 7},
    "validation": {"1": [0.8, 0.7]},
}


def card(folder: Path, **training: object) -> str:
    made = tiny.model(tiny.description(name="paper", heads=6))
    about = dataclasses.replace(made.description, training={**TRAINING, **training})
    assert made.selection is not None
    save_model(folder, about, made.proposal.state_dict(), made.selection.state_dict())
    return write_card(folder).read_text()


def test_says_what_was_trained_how_long_and_on_what(tmp_path: Path) -> None:
    text = card(tmp_path)
    assert load_model(tmp_path).version in text
    assert "M = 6 masks" in text
    assert "2,500 of 3,000 planned steps" in text
    assert "1.5 hours" in text
    assert "300,000 steps" in text
    assert "scaled to 1.0%" in text
    assert "Only a CPU did the training" in text
    assert "| 1 | 0.800 | 0.700 |" in text
    assert re.search(r"voc instance \| 3,086 \| Pascal VOC", text)
    assert re.search(r"mystery part \| 7 \| see its owner", text)
    assert "Nothing has been measured yet" in text


@pytest.mark.parametrize("distance", [None, 0.3])
def test_says_where_alternatives_come_from(tmp_path: Path, distance: float | None) -> None:
    inference = InferenceConfig(look_ahead=distance)
    write_model(tmp_path, tiny.model(tiny.description(pyramid=True, inference=inference)))
    text = write_card(tmp_path).read_text()
    assert ("0.3 times the square root of its area" in text) == (distance is not None)


def test_says_of_what_f_is_the_mean(tmp_path: Path) -> None:
    told = "replaced by the mean of those of `paper-1`, `paper-2`."
    assert told in card(tmp_path, mean_of=["paper-1", "paper-2"])
    assert "the mean of those" not in card(tmp_path)
    before = {**TRAINING, "mean_of": ["paper-1", "paper-2"]}
    assert told in card(tmp_path, began_with={"version": "paper-3", "training": before})


def test_says_what_came_before(tmp_path: Path) -> None:
    stage = {"version": "x-1", "steps_done": 1200, "images": 2, "targets": 4, "seconds": 1800}
    loss = {"focal": 1.0}
    earlier = [
        {**stage, "crop": 288, "grid": 4},
        {**stage, "crop": None},
        {**stage, "crop": 256, "phase": "f", "soften": 800.0, "loss": loss},
        {**stage, "crop": 320, "phase": "g", "soften": 1.0, "loss": loss},
    ]
    ancestor = {"version": "x-2", "training": TRAINING, "earlier": earlier}
    text = card(tmp_path, began_with=ancestor)
    assert "It began with `x-2`: 2,500 steps of 1 images with 1 objects each, whole" in text
    assert "1,200 steps of 2 images with 4 objects each, crops of 288 pixels, on means of" in text
    assert "whole images (0.5 hours)" in text
    assert (
        "f, 1,200 steps of 2 images with 4 objects each, crops of 256 pixels, from logits divided "
        "by 800, with a focal term in the loss (0.5 hours)" in text
    )
    assert "g, 1,200 steps of 2 images with 4 objects each, crops of 320 pixels (0.5" in text
    assert "is not listed" not in text
    ancestor["earlier"] = [earlier[0]] * MOST_EARLIER
    assert "before that is not listed" in card(tmp_path, began_with=ancestor)


@pytest.mark.parametrize(
    ("last", "told"), [(1.8, "the loss fell by 10.0%."), (2.1, "the loss did not fall any more.")]
)
def test_says_whether_the_loss_was_still_falling(tmp_path: Path, last: float, told: str) -> None:
    losses = [3.0, 2.0, 1.9, 1.85, last]
    course = [
        {"step": 500 * n, "loss": loss, "best": 0.8125, "selected": 0.75}
        for n, loss in enumerate(losses, start=1)
    ]
    earlier = {**TRAINING, "course": [*course[:-1], {**course[-1], "loss": 1.0}], "phase": "f"}
    before = {"version": "paper-0", "training": earlier}
    text = card(tmp_path, course=course, began_with=before)
    assert told in text
    assert f"| 2,500 | {last:.3f} | 0.812 | 0.750 |" in text
    line = next(line for line in text.splitlines() if line.startswith("It began with `paper-0`"))
    assert line.endswith("the loss fell by 50.0%.")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_a_gpu_did_is_not_blamed_on_a_cpu(tmp_path: Path, device: str) -> None:
    assert ("Only a CPU" in card(tmp_path, device=device)) == (device == "cpu")


def test_results_come_with_their_command(tmp_path: Path) -> None:
    card(tmp_path)
    record_results(tmp_path, {"GrabCut": {"text": "1.5 clicks", "command": "lidiv evaluate x"}})
    text = write_card(tmp_path).read_text()
    assert "### GrabCut" in text
    assert "1.5 clicks" in text
    assert "`lidiv evaluate x`" in text


def test_weights_of_nothing_known_have_a_card_too(tmp_path: Path) -> None:
    made = tiny.model(tiny.description(ranked=True))
    save_model(tmp_path, made.description, made.proposal.state_dict(), None)
    text = write_card(tmp_path).read_text()
    assert "Nothing is recorded" in text
    assert "f ranks its own masks" in text
