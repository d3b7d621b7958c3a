"""`lidiv train` as people call it: settings, a folder of images, one process and two."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from accelerate.state import AcceleratorState

from lidiv_backend.cli import main
from lidiv_backend.errors import BadRequestError
from lidiv_backend.model import load_model
from lidiv_backend.networks.prompt import PromptChannels
from lidiv_backend.training.command import add_arguments, default_data, override
from lidiv_backend.training.config import PRESETS, training_preset
from tests.tiny import PaintedSet

#: Tiny, but with all that the trainer does.
SETTINGS = (
    "proposal.encoder=null",
    "proposal.heads=2",
    "proposal.width=8",
    "selection.heads=2",
    "crop=16",
    "zoom=[0.4,0.6]",
    "averaging=0.5",
    "joint=true",
)


@pytest.fixture
def data(tmp_path: Path) -> str:
    """A folder of images and masks, as `--data` names it."""
    images = PaintedSet(length=10)
    for part in ("images", "masks"):
        (tmp_path / "data" / part).mkdir(parents=True)
    for index in range(len(images)):
        image = images[index]
        cv2.imwrite(str(tmp_path / "data" / "images" / f"{index}.png"), image.rgb[:, :, ::-1])
        for k, item in enumerate(image.objects):
            mask = item.mask.astype(np.uint8) * 255
            cv2.imwrite(str(tmp_path / "data" / "masks" / f"{index}.{k}.png"), mask)
    return f"folder:{tmp_path / 'data'}"


def words(out: Path, data: str, *more: str, settings: tuple[str, ...] = SETTINGS) -> list[str]:
    command = ["train", "paper", "--out", str(out), "--data", data, "--cpu", "--precision", "no"]
    command += ["--workers", "0", "--validation-images", "1", *more]
    for setting in settings:
        command += ["--set", setting]
    return command


class TestCommand:
    @pytest.fixture(autouse=True)
    def _no_collection(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("accelerate.utils.memory.gc.collect", lambda: None)

    def test_trains_and_says_where_the_weights_are(
        self, tmp_path: Path, data: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "run"
        assert main(words(out, data, "--steps", "2")) == 0
        printed = capsys.readouterr().out
        assert "finished" in printed
        assert f"weights: {out / 'weights'}" in printed
        model = load_model(out / "weights")
        assert model.description.training["preset"] == "paper"
        assert model.description.training["scale"] == round(2 / 300_000, 4)
        for picture in ("curves.png", "examples.png"):
            assert cv2.imread(str(out / picture)) is not None

    def test_stops_after_its_minutes_and_resumes(
        self, tmp_path: Path, data: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "run"
        assert main(words(out, data, "--steps", "2", "--minutes", "0")) == 0
        assert "stopped after step 1: --resume goes on" in capsys.readouterr().out
        assert main(words(out, data, "--steps", "2")) == 1
        assert "--resume" in capsys.readouterr().err
        assert main(words(out, data, "--steps", "2", "--resume")) == 0
        assert "finished" in capsys.readouterr().out

    def test_a_set_too_small_for_validation_is_trained_on(
        self, tmp_path: Path, data: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        # hash_split puts about one image in ten aside; of these two, none.
        for path in (tmp_path / "data").glob("*/*.png"):
            if not path.name.startswith(("1.", "2.")):
                path.unlink()
        assert main(words(tmp_path / "run", data, "--steps", "1")) == 0
        assert "training without validation" in capsys.readouterr().out

    def test_what_is_wrong_is_said_in_one_line(
        self, tmp_path: Path, data: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for settings in (("crop=-1",), ("speed=2",), ("selection.heads=3",)):
            assert main(words(tmp_path / "run", data, settings=SETTINGS + settings)) == 1
            assert capsys.readouterr().err.startswith("lidiv train: ")
        assert main(words(tmp_path / "run", data, settings=(*SETTINGS, "soften=9"))) == 1
        assert "Name them with --begin-with" in capsys.readouterr().err
        assert main(words(tmp_path / "run", "folder:/nowhere")) == 1
        assert capsys.readouterr().err.startswith("lidiv train: ")
        assert not (tmp_path / "run" / "weights").exists()


def _torchrun(tmp_path: Path, command: list[str]) -> list[dict[str, Any]]:
    """Run `lidiv` in two processes; what each of them told."""
    told = tmp_path / "told"
    told.mkdir(exist_ok=True)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run"),
            *("--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"),
            *(str(Path(__file__).with_name("two_processes.py")), str(told), *command),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((told / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_two_processes_see_different_examples_and_end_alike(tmp_path: Path, data: str) -> None:
    out = tmp_path / "run"
    # As the documentation has it: where there is no GPU, nobody has to say so.
    settings = (*SETTINGS, "iterations=[1,1,1,1]")
    command = [
        word for word in words(out, data, "--steps", "3", settings=settings) if word != "--cpu"
    ]
    first, second = _torchrun(tmp_path, command)
    assert first["wrapped"] == second["wrapped"] == "DistributedDataParallel"
    assert len(first["examples"]) == len(second["examples"]) == 3
    assert not set(first["examples"]) & set(second["examples"])
    # As many further clicks, since each would wait for the other.
    assert first["rounds"] == second["rounds"]
    assert len(set(first["rounds"])) > 1
    assert len(first["weights"]) > 40
    assert first["weights"] == second["weights"]
    assert load_model(out / "weights").description.training["processes"] == 2
    states = {path.name for path in (out / "checkpoint").iterdir()}
    assert {"random_states_0.pkl", "random_states_1.pkl"} <= states
    # A checkpoint of two processes is for two.
    with pytest.raises(BadRequestError, match="was made with processes 2"):
        _read_with_one_process(out, data)


def _read_with_one_process(out: Path, data: str) -> None:
    from lidiv_backend.training.data import open_image_set
    from lidiv_backend.training.trainer import RunOptions, Trainer

    config = training_preset("paper")
    for setting in SETTINGS:
        config = override(config, setting)
    options = RunOptions(folder=out, cpu=True, precision="no", workers=0, resume=True)
    try:
        Trainer(config, options, open_image_set(data), None).run()
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


class TestOverride:
    @pytest.mark.parametrize(
        ("assignment", "read", "expected"),
        [
            ("crop=256", lambda c: c.crop, 256),
            ("crop=null", lambda c: c.crop, None),
            ("rate=1", lambda c: c.rate, 1),
            ("zoom=[1, 3.5]", lambda c: c.zoom, (1, 3.5)),
            ("iterations=[1]", lambda c: c.iterations, (1,)),
            ("proposal.heads=1", lambda c: c.proposal.heads, 1),
            ("proposal.encoder=null", lambda c: c.proposal.encoder, None),
            (
                "proposal.prompt.radius=2",
                lambda c: c.proposal.prompt,
                PromptChannels(previous=True, radius=2),
            ),
            ('loss.task="l1"', lambda c: c.loss.task, "l1"),
            ("selection=null", lambda c: c.selection, None),
            ('kinds={"part": 2}', lambda c: c.kinds, {"part": 2}),
            ("inference.merge_iou=0.5", lambda c: c.inference.merge_iou, 0.5),
            ("inference.max_pixels=100", lambda c: c.inference.max_pixels, 100),
            ("joint=false", lambda c: c.joint, False),
        ],
    )
    def test_changes_one_setting(
        self, assignment: str, read: Callable[[Any], Any], expected: Any
    ) -> None:
        config = training_preset("default")
        changed = override(config, assignment)
        assert read(changed) == expected
        assert read(config) == read(training_preset("default"))

    @pytest.mark.parametrize(
        ("assignment", "message"),
        [
            ("crop", "is not JSON"),
            ("loss.task=l1", "is not JSON.*double quotes"),
            ("speed=2", "no setting 'speed'.*Known are .*crop"),
            ("loss.speed=2", "no setting 'speed'.*Known are clicks"),
            ("crop.x=2", "nothing called 'x' in 320"),
            ("steps=null", "None cannot take the place"),
            ('steps="9"', "'9' cannot take the place"),
            ("steps=1.5", "1.5 cannot take the place"),
            ("joint=1", "1 cannot take the place"),
            ("rate=true", "True cannot take the place"),
            ("loss=3", "3 cannot take the place"),
            ("zoom=2", "2 cannot take the place"),
            ('iterations=["a"]', "cannot take the place"),
            ("kinds=[1]", "cannot take the place"),
        ],
    )
    def test_refuses_what_it_does_not_know(self, assignment: str, message: str) -> None:
        with pytest.raises(BadRequestError, match=message):
            override(training_preset("default"), assignment)

    def test_selection_can_be_taken_away_and_not_changed_then(self) -> None:
        without = override(training_preset("default"), "selection=null")
        with pytest.raises(BadRequestError, match="nothing called 'heads' in None"):
            override(without, "selection.heads=3")


class TestDefaults:
    @pytest.mark.parametrize("name", sorted(PRESETS))
    def test_presets_keep_their_own_rules(self, name: str) -> None:
        config = training_preset(name)
        config.validate()
        assert config.name == name
        assert config.selection is not None
        assert config.selection.heads == config.proposal.heads == 6

    def test_the_paper_preset_is_the_papers(self) -> None:
        config = PRESETS["paper"]
        assert (config.rate, config.warmup, config.images, config.crop) == (1e-4, 0, 1, None)
        assert (config.averaging, config.decay, config.joint) == (0, 0, False)
        assert (config.loss.task, config.loss.clicks, config.loss.focal) == ("jaccard", 1, 0)
        assert config.proposal.encoder == "vgg19"
        assert config.proposal.prompt == PromptChannels()
        assert config.inference.merge_iou is None

    def test_an_unknown_preset_is_refused(self) -> None:
        with pytest.raises(BadRequestError, match=r"no training preset 'x'.*default"):
            training_preset("x")

    def test_the_pool_is_the_default_data(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LIDIV_DATA", "/pool")
        assert default_data() == "shards:/pool/train"
        monkeypatch.delenv("LIDIV_DATA")
        with pytest.raises(BadRequestError, match=r"No data set.*LIDIV_DATA"):
            default_data()

    def test_every_option_has_help(self) -> None:
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        assert all(action.help for action in parser._actions)
