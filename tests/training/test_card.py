import dataclasses
from pathlib import Path

from lidiv_backend.model import load_model, record_results
from lidiv_backend.training.card import write_card
from tests import tiny

TRAINED = {
    "steps": 40,
    "steps_done": 30,
    "images": 2,
    "targets": 3,
    "seconds": 7200,
    "processes": 1,
    "device": "cpu",
    "precision": "bf16",
    "data_masks": {"pets instance": 313, "homemade region": 5},
    "validation": {"1": [0.75, 0.5]},
    "began_with": {
        "version": "tiny-before",
        "training": {"steps_done": 9, "images": 1, "targets": 1, "seconds": 3600},
    },
}


def test_card_says_what_model_json_says(tmp_path: Path) -> None:
    about = dataclasses.replace(tiny.description(), training=TRAINED)
    folder = tiny.saved(tmp_path / "weights", about)
    record_results(folder, {"Set, centre": {"text": "| clicks |", "command": "lidiv evaluate x"}})

    card = write_card(folder).read_text()

    assert f"`{load_model(folder).version}`" in card
    assert "30 of 40 planned steps" in card
    assert "in 2.0 hours on 1 CPU" in card
    assert "`tiny-before`" in card
    assert "| pets instance | 313 | Oxford-IIIT Pet; CC BY-SA 4.0 |" in card
    assert "| homemade region | 5 | see its owner |" in card
    assert "| 1 | 0.750 | 0.500 |" in card
    assert "| clicks |\n\nMeasured with `lidiv evaluate x`." in card


def test_card_of_untrained_weights_claims_nothing(tmp_path: Path) -> None:
    card = write_card(tiny.saved(tmp_path / "weights")).read_text()

    assert "Nothing is recorded." in card
    assert "Nothing has been measured yet." in card
