from pathlib import Path

import cv2
import numpy as np
import pytest

from lidiv_backend.cli import main
from lidiv_backend.model import read_description, save_model
from tests import tiny


@pytest.fixture
def data(tmp_path: Path) -> str:
    return make_data(tmp_path / "set")


def make_data(folder: Path) -> str:
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
        mask = np.zeros((24, 32), np.uint8)
        mask[4:20, 4:20] = 255
        cv2.imwrite(str(folder / name / "a.png"), mask)
    return f"folder:{folder}"


def test_weights_are_measured_and_keep_what_they_scored(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    about = tiny.description(heads=2, ranked=True)
    weights = tmp_path / "weights"
    version = save_model(weights, about, tiny.model(about).proposal.state_dict(), None)
    page = tmp_path / "page.md"
    page.write_text("Before.\n<!-- measured: clicks -->\n<!-- end: clicks -->\n")
    words = ["evaluate", "--methods", f"mine={weights}", "--data-sets", data, "--record"]
    assert main([*words, "--insert", str(page), "--out", str(tmp_path / "out")]) == 0
    assert "| mine |" in capsys.readouterr().out
    description = read_description(weights)
    (name,) = description.results
    assert name == "Clicks on set, protocol centre"
    assert "clicks to 85 % IoU" in description.results[name]["text"]
    # Nobody's own folders are printed in a model card.
    assert description.results[name]["command"] == (
        "lidiv evaluate --methods mine --data-sets folder:set --protocol centre"
    )
    assert "clicks to 85 % IoU" in (weights / "README.md").read_text()
    assert "## set, protocol centre" in page.read_text()
    # Recording is no other version: all is done already.
    assert main([*words, "--resume", "--out", str(tmp_path / "out")]) == 0
    assert version in (tmp_path / "out" / "results.jsonl").read_text()


def test_a_card_and_a_page_name_the_command_that_measured_what_they_show(
    data: str, tmp_path: Path
) -> None:
    about = tiny.description(heads=2, ranked=True)
    weights = tmp_path / "weights"
    save_model(weights, about, tiny.model(about).proposal.state_dict(), None)
    other = make_data(tmp_path / "other")
    words = ["evaluate", "--methods", f"mine={weights}", "--record", "--out", str(tmp_path / "out")]
    assert main([*words, "--data-sets", data]) == 0
    page = tmp_path / "page.md"
    page.write_text("<!-- measured: clicks -->\n<!-- end: clicks -->\n")
    further = ["--data-sets", other, "--limit", "1", "--stop-at", "0.9", "--no-actions"]
    assert main([*words, *further, "--resume", "--insert", str(page)]) == 0
    results = read_description(weights).results
    assert results["Clicks on set, protocol centre"]["command"].endswith(
        "--data-sets folder:set --protocol centre"
    )
    assert results["Clicks on other, protocol centre"]["command"].endswith(
        "--limit 1 --stop-at 0.9 --no-actions"
    )
    # An annotator who is content with 90 % says nothing of 95 %.
    table = page.read_text().split("| method | objects")[1].splitlines()
    header = [cell.strip() for cell in table[0].split("|")]
    row = [cell.strip() for cell in table[2].split("|")][-len(header) :]
    told = dict(zip(header, row, strict=True))
    assert told["clicks to 95 %"] == told["failed 95 %"] == "-"
    assert told["failed 90 %"].endswith("%")
    assert "95 %" not in results["Clicks on other, protocol centre"]["text"].split("\n", 2)[2]
    # The folder holds both.
    assert "## set, protocol" in (tmp_path / "out" / "summary.md").read_text()
    assert "## other, protocol" in page.read_text()
    assert "## set, protocol" not in page.read_text()


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--protocol", "cetre", "Known are: centre, sampled"),
        ("--seeds", "0", "at least one seed"),
        ("--stop-at", "95", "at most 1"),
        ("--methods", "a=", "names no method"),
        ("--methods", "no-such-preset", "no weights 'no-such-preset'"),
    ],
)
def test_wrong_options_are_answered_with_what_is_possible(
    option: str, value: str, said: str, data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {"--methods": "graph-cut", "--data-sets": data, option: value}
    flat = [part for pair in words.items() for part in pair]
    assert main(["evaluate", *flat, "--out", "never"]) == 1
    assert said in capsys.readouterr().err


def test_what_is_to_be_measured_must_be_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--methods", "graph-cut", "--out", "never"]) == 1
    assert "--data-sets" in capsys.readouterr().err
