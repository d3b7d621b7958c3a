"""`lidiv reproduce`: its variants, their training side by side, and what it measures."""

from __future__ import annotations

import argparse
import dataclasses
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lidiv_backend.errors import BadRequestError, TrainingError
from lidiv_backend.evaluation import reproduce, side_by_side
from lidiv_backend.evaluation.reference import FIGURE_5, TABLE_2, TABLE_3, TABLE_4
from lidiv_backend.evaluation.side_by_side import SideBySide, rate_factor
from lidiv_backend.evaluation.variants import (
    FULL,
    HALF_DAY,
    QUICK,
    VARIANTS,
    Budget,
    Variant,
    choose_variants,
)
from lidiv_backend.model import load_model, read_description
from lidiv_backend.networks.encoders import build_encoder
from lidiv_backend.networks.proposal import DosNetwork
from lidiv_backend.training.config import PRESETS, LossConfig
from tests import tiny

#: Two steps of f and two of g on crops of 16 pixels.
TINY = Budget(steps=2, selection_steps=2, crop=16, zoom=(0.4, 0.6), rate=1e-3, warmup=1)


@pytest.fixture(autouse=True)
def _no_fetched_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    def random(name):
        torch.manual_seed(5)
        return build_encoder(name, pretrained=False)

    monkeypatch.setattr(side_by_side, "build_encoder", random)


def together(folder: Path, labels: list[str], budget: Budget = TINY) -> SideBySide:
    images = tiny.PaintedSet(count=1)
    return SideBySide(choose_variants(labels), budget, images, folder, workers=0)


class TestVariants:
    def test_every_row_of_every_table(self) -> None:
        trained = {*TABLE_3, *TABLE_4, *FIGURE_5, "dos"}
        assert set(VARIANTS) == trained
        assert sorted(FIGURE_5.values()) == list(range(1, 9))
        assert {"dos", "dos-graph-cut", *PRESETS} < set(TABLE_2)
        with pytest.raises(BadRequestError, match="no variants full-of-it"):
            choose_variants(["full", "full-of-it"])

    def test_m_is_the_number_of_masks(self) -> None:
        for label, heads in FIGURE_5.items():
            config = VARIANTS[label].config(TINY)
            assert config.proposal.heads == heads
            assert (config.selection is None) == (heads == 1)
            config.validate()

    @pytest.mark.parametrize("budget", [QUICK, HALF_DAY, FULL], ids=["quick", "half-day", "full"])
    def test_can_be_trained_by_the_other_command_too(self, budget: Budget) -> None:
        for variant in VARIANTS.values():
            variant.config(budget).validate()

    @pytest.mark.parametrize("label", [label for label in TABLE_3 if label != "full"])
    def test_one_idea_is_missing_and_nothing_else(self, label: str) -> None:
        """The full model is the preset; each row of Table 3 changes what its name says."""
        full, other = VARIANTS["full"].config(FULL), VARIANTS[label].config(FULL)
        preset = PRESETS["paper"]
        assert dataclasses.replace(preset, name="full") == full
        parts = ("proposal", "selection", "loss")
        changed = [part for part in parts if getattr(full, part) != getattr(other, part)]
        expected = {
            "no-augmented-input": ["proposal"],
            "cross-entropy": ["loss"],
            "l1": ["loss"],
            "no-diversity": ["proposal", "selection"],
            "no-distance-transforms": ["proposal", "selection"],
            "no-click-input": ["proposal", "selection"],
            "no-soft-constraints": ["loss"],
            "rdl": ["selection", "loss"],
        }
        assert changed == expected[label]
        rest = {part: getattr(full, part) for part in parts}
        assert dataclasses.replace(other, name="full", **rest) == full

    def test_dos_is_trained_as_xu_et_al_did(self) -> None:
        config = VARIANTS["dos"].config(TINY)
        assert config.loss == LossConfig(task="cross_entropy", clicks=0.0)
        assert config.proposal.prompt.count == 2
        assert config.proposal.prompt.distances
        assert config.selection is None


class TestTraining:
    def test_neighbours_make_no_difference(self, tmp_path: Path) -> None:
        assert together(tmp_path / "a", ["full", "rdl", "no-augmented-input"]).run()
        assert together(tmp_path / "b", ["no-augmented-input"]).run()
        for name in ("f.safetensors", "g.safetensors"):
            place = Path("weights") / "no-augmented-input" / name
            one, other = (load_file(tmp_path / each / place) for each in "ab")
            assert all(torch.equal(one[key], other[key]) for key in one)

    @pytest.mark.parametrize("stops", [1, 3])
    def test_stopping_leaves_no_trace(
        self, tmp_path: Path, stops: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        labels = ["m2", "rdl"]
        assert together(tmp_path / "whole", labels).run()
        # In f's phase, or in g's, when rdl is finished already.
        steps = iter(range(stops))
        due = side_by_side.StopSwitch.is_due
        monkeypatch.setattr(
            side_by_side.StopSwitch, "is_due", lambda _: next(steps, None) == stops - 1
        )
        assert not together(tmp_path / "parts", labels).run()
        assert (tmp_path / "parts" / "training.pt").is_file()
        monkeypatch.setattr(side_by_side.StopSwitch, "is_due", due)
        assert together(tmp_path / "parts", labels).run()
        assert not (tmp_path / "parts" / "training.pt").exists()
        for place in ("m2/f", "m2/g", "rdl/f"):
            one, other = (
                load_file(tmp_path / each / "weights" / f"{place}.safetensors")
                for each in ("whole", "parts")
            )
            assert all(torch.equal(one[key], other[key]) for key in one), place

    def test_what_is_done_is_left_out(self, tmp_path: Path) -> None:
        assert together(tmp_path, ["rdl"]).run()
        written = (tmp_path / "weights" / "rdl" / "f.safetensors").stat().st_mtime_ns
        assert together(tmp_path, ["rdl", "no-diversity"]).run()
        assert (tmp_path / "weights" / "rdl" / "f.safetensors").stat().st_mtime_ns == written
        training = read_description(tmp_path / "weights" / "no-diversity").training
        assert training["budget"] == str(TINY)

    def test_another_budget_is_refused(self, tmp_path: Path) -> None:
        assert not together(tmp_path, ["rdl"]).run(minutes=0)
        more = dataclasses.replace(TINY, steps=3)
        with pytest.raises(BadRequestError, match="unfinished training of rdl, each: 2 steps"):
            together(tmp_path, ["rdl"], more).run()

    def test_a_variant_that_diverges_can_be_left_out(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(side_by_side, "_CHECKPOINT_EVERY", 1)
        wild = dataclasses.replace(VARIANTS["rdl"], rate=1e30)
        images = tiny.PaintedSet(count=1)
        trainer = SideBySide([VARIANTS["m2"], wild], TINY, images, tmp_path, workers=0)
        with pytest.raises(TrainingError, match="In step 2 of f the loss of rdl") as caught:
            trainer.run()
        parser = argparse.ArgumentParser()
        reproduce.add_arguments(parser)
        named = re.findall(r"--[\w-]+", str(caught.value.remedy))
        assert named == ["--variants"]
        assert set(named) <= set(parser._option_string_actions)
        assert together(tmp_path, ["m2"]).run()
        assert together(tmp_path / "alone", ["m2"]).run()
        one, other = (
            load_file(folder / "weights" / "m2" / "f.safetensors")
            for folder in (tmp_path, tmp_path / "alone")
        )
        assert all(torch.equal(one[key], other[key]) for key in one)

    def test_dos_begins_with_vgg_and_learns_all_of_it(self, tmp_path: Path) -> None:
        assert together(tmp_path, ["dos"]).run()
        network = load_model(tmp_path / "weights" / "dos").proposal
        assert isinstance(network, DosNetwork)
        torch.manual_seed(5)
        vgg = build_encoder("vgg19", pretrained=False).state_dict()
        for name, tensor in network.body.trunk.state_dict().items():
            assert not torch.equal(tensor, vgg[name]), name
            torch.testing.assert_close(tensor, vgg[name], rtol=0, atol=3e-3)
        assert network.body.widening.weight.abs().max() > 0

    def test_rate(self) -> None:
        assert [rate_factor(step, 10, 0) for step in (0, 9)] == [1, 1]
        assert [rate_factor(step, 12, 2) for step in (0, 1, 2, 7)] == [0.5, 1, 1, 0.5]
        assert rate_factor(12, 12, 2) == 0


class TestPlans:
    def test_table_2(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        presets = tmp_path / "presets"
        for name in ("paper", "default"):
            tiny.saved(presets / name, tiny.description(name=name))
        monkeypatch.setenv("LIDIV_WEIGHTS", str(presets))
        scale = reproduce.QUICK_SCALE
        plans = reproduce.table_2_plans(scale, tmp_path, ["grabcut", "coco-dev"], None)
        assert {spec.label for plan in plans for spec in plan.methods} == {
            *(label for label in TABLE_2 if label not in ("grabcut", "dos", "dos-graph-cut"))
        }
        tiny.saved(tmp_path / "weights" / "dos", tiny.description(name="dos", ranked=True))
        plans = reproduce.table_2_plans(scale, tmp_path, ["grabcut", "coco-dev"], None)
        specs = {spec.label: (spec, plan) for plan in plans for spec in plan.methods}
        assert set(specs) == set(TABLE_2) - {"grabcut"}
        for label in ("dos-graph-cut", "graph-cut"):
            assert specs[label][0].longest_side == 320
            assert len(specs[label][1].seeds) == 1
        assert len(specs["default"][1].seeds) == 3
        assert specs["dos-graph-cut"][0].source == f"{tmp_path / 'weights' / 'dos'}+graph-cut"
        assert specs["paper"][0].source == str(presets / "paper")
        assert {plan.limit for plan in plans if plan.data_sets == ("grabcut",)} == {None}
        assert {plan.limit for plan in plans if plan.data_sets == ("coco-dev",)} == {scale.limit}

    def test_full_size_reduces_nothing(self, tmp_path: Path) -> None:
        tiny.saved(tmp_path / "weights" / "full", tiny.description(name="full"))
        scale = reproduce.FULL_SCALE
        (plan,) = reproduce.variant_plans(scale, tmp_path, ["full", "rdl"], ["davis"], None)
        assert [spec.label for spec in plan.methods] == ["full"]
        assert (plan.limit, len(plan.seeds)) == (None, 3)
        assert Variant(label="x").config(scale.budget).crop is None
        assert Variant(label="x").config(scale.budget).inference.longest_side is None
