"""Tiny training runs: they learn, and stopping and resuming leaves no trace."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import Tensor

from lidiv_backend import Click, Predictor
from lidiv_backend.clicks import pack_clicks
from lidiv_backend.errors import BadRequestError, TrainingError, WeightsError
from lidiv_backend.model import InferenceConfig, build_networks, load_model, read_description
from lidiv_backend.networks import encoders
from lidiv_backend.networks.prompt import Prompt, PromptChannels
from lidiv_backend.networks.proposal import ProposalConfig
from lidiv_backend.networks.selection import SelectionConfig
from lidiv_backend.records import AnnotatedImage
from lidiv_backend.training import trainer as trainer_module
from lidiv_backend.training.config import LossConfig, TrainingConfig
from lidiv_backend.training.draws import Draws
from lidiv_backend.training.step import TrainingStep
from lidiv_backend.training.trainer import RunOptions, Trainer
from tests.tiny import PaintedSet

#: The paper's networks without an encoder, on crops of 16 pixels.
PAPER = TrainingConfig(
    name="tiny",
    proposal=ProposalConfig(encoder=None, heads=3),
    selection=SelectionConfig(heads=3),
    steps=4,
    images=1,
    targets=2,
    crop=16,
    zoom=(0.4, 0.6),
    rate=1e-3,
)
PYRAMID = ProposalConfig(architecture="pyramid", encoder="mobilesam")
#: Everything that the default preset does, at once.
EVERYTHING = dataclasses.replace(
    PAPER,
    proposal=ProposalConfig(encoder=None, heads=3, prompt=PromptChannels(previous=True)),
    joint=True,
    images=2,
    warmup=2,
    decay=0.01,
    averaging=0.5,
    iterations=(0.3, 0.4, 0.3),
    dos=0.3,
    merged=0.3,
    jitter=0.3,
    loss=LossConfig(focal=1.0, clicks=0.1, relaxation=0.05),
)


@pytest.fixture(autouse=True)
def _fresh_accelerator(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Accelerate keeps its state for the process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    # Accelerate collects garbage after every run, half a second each in a large process.
    monkeypatch.setattr("accelerate.utils.memory.gc.collect", lambda: None)
    yield
    torch.set_num_threads(threads)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Trainer]:
    """Runs a training in a folder below `tmp_path`."""

    def run(
        config: TrainingConfig = PAPER,
        folder: str = "run",
        *,
        images: Any = None,
        validation: Any = None,
        draw: bool = False,
        begin_with: str | None = None,
        **options: Any,
    ) -> Trainer:
        if not draw:
            monkeypatch.setattr(trainer_module, "draw_examples", lambda *_: None)
        defaults: dict[str, Any] = {"precision": "no", "workers": 0, "validation_images": 2}
        chosen = RunOptions(folder=tmp_path / folder, cpu=True, **{**defaults, **options})
        trainer = Trainer(config, chosen, images or PaintedSet(), validation)
        if begin_with is not None:
            trainer.begin_with(load_model(tmp_path / begin_with / "weights"))
        trainer.run()
        return trainer

    return run


def weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a run's weights."""
    found = {}
    for path in sorted((folder / "weights").glob("*.safetensors")):
        found |= {f"{path.stem}.{key}": value for key, value in load_file(path).items()}
    return found


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


class TestLearning:
    def test_a_tiny_run_lowers_the_loss(
        self, train: Callable[..., Trainer], tmp_path: Path
    ) -> None:
        config = dataclasses.replace(
            PAPER,
            selection=None,
            steps=80,
            crop=24,
            zoom=(0.4, 0.4),
            dos=0.0,
            rate=2e-3,
            loss=LossConfig(focal=1.0, clicks=0.1),
        )
        train(config, log_every=1)
        log = rows(tmp_path / "run")
        assert [row["step"] for row in log] == list(range(1, 81))
        # The rows are means of all before: what the last steps had is in their difference.
        losses = np.diff([row["loss"] * row["step"] for row in log], prepend=0)
        best = np.diff([row["best"] * row["step"] for row in log], prepend=0)
        assert losses[-10:].mean() < 0.85 * losses[:10].mean()
        assert best[-10:].mean() > best[:10].mean() + 0.2

    def test_f_and_then_g(self, train: Callable[..., Trainer], tmp_path: Path) -> None:
        trainer = train(PAPER, "f-g", log_every=1)
        assert trainer.phases == ("f", "g")
        assert [row["phase"] for row in rows(tmp_path / "f-g")] == ["f"] * 4 + ["g"] * 4
        # f is not touched in g's phase.
        train(dataclasses.replace(PAPER, selection=None), "f")
        first, second = weights(tmp_path / "f-g"), weights(tmp_path / "f")
        assert second
        assert all(torch.equal(first[key], second[key]) for key in second)

    def test_g_is_trained_in_its_phase(self, train: Callable[..., Trainer], tmp_path: Path) -> None:
        train(PAPER)
        trained = weights(tmp_path / "run")
        torch.manual_seed(PAPER.seed)
        _, fresh = build_networks(PAPER.proposal, PAPER.selection)
        assert fresh is not None
        assert any(
            not torch.equal(trained[f"g.{key}"], value) for key, value in fresh.state_dict().items()
        )

    def test_gs_phase_sees_other_examples(
        self, train: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[int] = []
        draw = Draws.__getitem__
        monkeypatch.setattr(
            Draws, "__getitem__", lambda self, i: (asked.append(i), draw(self, i))[1]
        )
        train(PAPER)
        assert asked == list(range(8))

    def test_ranked_diversity_needs_no_g(
        self, train: Callable[..., Trainer], tmp_path: Path
    ) -> None:
        config = dataclasses.replace(PAPER, selection=None, loss=LossConfig(ranked=True))
        trainer = train(config, validation=PaintedSet())
        assert trainer.phases == ("f",)
        model = load_model(tmp_path / "run" / "weights")
        assert model.selection is None
        assert not (tmp_path / "run" / "weights" / "g.safetensors").exists()

    @pytest.mark.parametrize(
        "change",
        [
            {"loss": LossConfig(task="cross_entropy")},
            {"loss": LossConfig(task="l1")},
            {"loss": LossConfig(clicks=0.0)},
            {"loss": LossConfig(ranked=True), "selection": None},
            {"proposal": ProposalConfig(encoder=None, heads=1), "selection": None},
            {
                "proposal": ProposalConfig(
                    encoder=None, heads=3, prompt=PromptChannels(distances=False)
                )
            },
            {
                "proposal": ProposalConfig(
                    encoder=None, heads=3, prompt=PromptChannels(clicks=False)
                )
            },
            {"proposal": ProposalConfig(encoder=None, heads=3, body="unet")},
        ],
        ids=["entropy", "l1", "no-clicks-loss", "rdl", "m1", "no-distances", "no-clicks", "unet"],
    )
    def test_every_row_of_tables_3_and_4_runs(
        self, train: Callable[..., Trainer], tmp_path: Path, change: dict[str, Any]
    ) -> None:
        config = dataclasses.replace(PAPER, steps=1, **change)
        assert train(config).finished
        predictor = Predictor.from_pretrained(tmp_path / "run" / "weights", device="cpu")
        rgb = PaintedSet()[0].rgb
        assert predictor.predict(predictor.embed(rgb), [Click(x=3, y=3)])

    def test_whole_images_of_different_sizes(self, train: Callable[..., Trainer]) -> None:
        class Mixed(PaintedSet):
            def __getitem__(self, index: int) -> AnnotatedImage:
                side = 40 + 4 * (index % 3)
                return PaintedSet(height=side, width=2 * side)[index]

        config = dataclasses.replace(PAPER, crop=None, targets=2, steps=3, joint=True)
        assert train(config, images=Mixed(), validation=Mixed()).finished

    def test_the_average_is_the_result(self, train: Callable[..., Trainer], tmp_path: Path) -> None:
        """Against the running average of the weights of runs of 1, 2 and 3 steps."""
        last: dict[str, Tensor] = {}
        averaged: dict[str, Tensor] = {}
        for steps in (1, 2, 3):
            plain = dataclasses.replace(PAPER, selection=None, steps=steps)
            train(plain, f"plain-{steps}")
            last = weights(tmp_path / f"plain-{steps}")
            for key, value in last.items():
                averaged[key] = value if steps == 1 else 0.75 * averaged[key] + 0.25 * value
        train(dataclasses.replace(plain, averaging=0.75), "averaged")
        found = weights(tmp_path / "averaged")
        for key, value in averaged.items():
            torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-6)
        assert not same(found, last)


class TestSharedClicks:
    @pytest.mark.parametrize("shared", [0.0, 1.0])
    def test_an_object_and_a_larger_one_are_asked_for_by_one_click(
        self, shared: float, train: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # The first object is merged with the second, which is asked for alone as well.
        seen: list[tuple[Click, Click]] = []
        forward = Trainer._forward

        def spy(trainer: Trainer, step: Any, batch: Any, features: Any, clicks: Any, mask: Any):  # type: ignore[no-untyped-def]
            (larger,), (smaller,) = clicks
            if batch.objects[1][round(larger.y), round(larger.x)]:
                seen.append((larger, smaller))
            return forward(trainer, step, batch, features, clicks, mask)

        monkeypatch.setattr(Trainer, "_forward", spy)
        config = dataclasses.replace(
            PAPER, steps=12, joint=True, merged=1.0, dos=0.0, shared=shared, crop=48
        )
        train(config)
        assert len(seen) > 2
        assert all(larger == smaller for larger, smaller in seen) == bool(shared)


class TestGrid:
    @pytest.mark.parametrize("grids", [(2, 2), (1, 4), (4, 4)])
    def test_trains_the_same_networks(
        self, train: Callable[..., Trainer], tmp_path: Path, grids: tuple[int, int]
    ) -> None:
        train(PAPER, "fine")
        coarse = dataclasses.replace(PAPER, grid=grids[0], selection_grid=grids[1])
        assert train(coarse, "coarse", validation=PaintedSet()).finished
        fine, found = weights(tmp_path / "fine"), weights(tmp_path / "coarse")
        assert {key: value.shape for key, value in found.items()} == {
            key: value.shape for key, value in fine.items()
        }
        assert not same(found, fine)
        # Goes on at full resolution, with the weights as they are.
        assert train(PAPER, "after", begin_with="coarse").finished

    def test_clicks_may_be_placed_on_coarser_masks(
        self, train: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shown, learnt = [], []
        show, judge = TrainingStep.show, TrainingStep.forward

        def see(self: TrainingStep, *arguments: Any) -> Any:
            shown.append(show(self, *arguments))
            return shown[-1]

        def learn(self: TrainingStep, *arguments: Any) -> Any:
            learnt.append((judge(self, *arguments), arguments[3]))
            return learnt[-1][0]

        monkeypatch.setattr(TrainingStep, "show", see)
        monkeypatch.setattr(TrainingStep, "forward", learn)
        further = dataclasses.replace(
            EVERYTHING, joint=False, click_grid=2, selection_grid=2, iterations=(0.0, 1.0)
        )
        # In f's phase and in that of g.
        assert train(further).finished
        assert len(shown) == len(learnt) == 2 * further.steps
        assert {masks.shape[-1] for masks in shown} == {8}
        assert {outcome.masks.shape[-1] for outcome, _ in learnt} == {16}
        assert all((prompt.clicks[..., 2] != 0).sum() > len(prompt.clicks) for _, prompt in learnt)


class TestResume:
    @pytest.mark.parametrize("config", [PAPER, EVERYTHING], ids=["paper", "everything"])
    @pytest.mark.parametrize("stops", [1, 3])
    def test_leaves_no_trace(
        self,
        train: Callable[..., Trainer],
        tmp_path: Path,
        config: TrainingConfig,
        stops: int,
    ) -> None:
        options = {"validation": PaintedSet(), "validate_every": 2, "log_every": 1}
        train(config, "whole", **options)
        trainer = train(config, "parts", time_limit=0.0, **options)
        assert not trainer.finished
        for _ in range(stops - 1):
            torch.manual_seed(1234)  # what a new process would begin with does not matter
            trainer = train(config, "parts", time_limit=0.0, resume=True, **options)
        torch.rand(7)
        trainer = train(config, "parts", resume=True, **options)
        assert trainer.finished
        assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
        whole, parts = (
            [(row["phase"], row["step"], "loss" in row) for row in rows(tmp_path / name)]
            for name in ("whole", "parts")
        )
        assert parts == whole
        validations = [
            [row["validation"] for row in rows(tmp_path / name) if "validation" in row]
            for name in ("whole", "parts")
        ]
        assert validations[0] == validations[1]

    def test_goes_on_from_the_last_checkpoint_after_a_crash(
        self, train: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        train(PAPER, "whole")
        step, count = Trainer._one_step, [0]

        def crash(self: Trainer, *arguments: Any) -> Any:
            count[0] += 1
            if count[0] == 4:
                raise MemoryError
            return step(self, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "_one_step", crash)
            with pytest.raises(MemoryError):
                train(PAPER, "parts", checkpoint_every=2, log_every=1)
        assert [row["step"] for row in rows(tmp_path / "parts")] == [1, 2, 3]
        AcceleratorState._reset_state(reset_partial_state=True)
        train(PAPER, "parts", resume=True, log_every=1)
        assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
        # Step 3 was done twice and is logged once.
        assert [row["step"] for row in rows(tmp_path / "parts")] == [1, 2, 3, 4] * 2

    def test_a_crash_between_the_two_renames_is_repaired(
        self, train: Callable[..., Trainer], tmp_path: Path
    ) -> None:
        train(PAPER, "whole")
        train(PAPER, "parts", time_limit=0.0)
        folder = tmp_path / "parts"
        (folder / "checkpoint").rename(folder / "checkpoint.old")
        (folder / "checkpoint.part").mkdir()
        (folder / "checkpoint.part" / "half").write_text("written")
        assert train(PAPER, "parts", resume=True).finished
        assert same(weights(tmp_path / "whole"), weights(folder))
        assert {path.name for path in folder.iterdir()} >= {"checkpoint", "weights", "log.jsonl"}
        assert not (folder / "checkpoint.old").exists()
        assert not (folder / "checkpoint.part").exists()

    def test_what_is_done_is_done(self, train: Callable[..., Trainer], tmp_path: Path) -> None:
        train(PAPER)
        before = weights(tmp_path / "run")
        assert train(PAPER, resume=True).finished
        assert same(before, weights(tmp_path / "run"))

    def test_a_finished_run_can_be_made_longer(
        self, train: Callable[..., Trainer], tmp_path: Path
    ) -> None:
        config = dataclasses.replace(PAPER, joint=True)
        train(config)
        before = weights(tmp_path / "run")
        longer = train(dataclasses.replace(config, steps=6), resume=True)
        assert longer.progress.step == 6
        assert not same(before, weights(tmp_path / "run"))

    def test_another_rate_counts_from_then_on(
        self, train: Callable[..., Trainer], tmp_path: Path
    ) -> None:
        config = dataclasses.replace(PAPER, selection=None)
        train(config, time_limit=0.0)
        before = weights(tmp_path / "run")
        train(dataclasses.replace(config, rate=1e-12), resume=True)
        for key, value in weights(tmp_path / "run").items():
            torch.testing.assert_close(value, before[key], rtol=0, atol=1e-8)

    def test_without_a_checkpoint_it_says_so(self, train: Callable[..., Trainer]) -> None:
        with pytest.raises(BadRequestError, match=r"no checkpoint in .*run to resume"):
            train(PAPER, resume=True)

    @pytest.mark.parametrize(
        ("change", "what"),
        [
            ({"proposal": ProposalConfig(encoder=None, heads=3, body="unet")}, "proposal"),
            ({"selection": None}, "selection"),
            ({"joint": True}, "joint"),
            ({"averaging": 0.9}, "averaging"),
        ],
    )
    def test_other_networks_do_not_fit(
        self, train: Callable[..., Trainer], change: dict[str, Any], what: str
    ) -> None:
        train(PAPER, time_limit=0.0)
        with pytest.raises(BadRequestError, match=f"was made with {what} "):
            train(dataclasses.replace(PAPER, **change), resume=True)

    def test_a_run_is_not_overwritten(self, train: Callable[..., Trainer], tmp_path: Path) -> None:
        train(PAPER, time_limit=0.0)
        before = weights(tmp_path / "run")
        with pytest.raises(BadRequestError, match=r"a run in .* already"):
            train(PAPER)
        assert same(before, weights(tmp_path / "run"))

    def test_a_damaged_checkpoint_says_so(
        self, train: Callable[..., Trainer], tmp_path: Path
    ) -> None:
        train(PAPER, time_limit=0.0)
        (tmp_path / "run" / "checkpoint" / "phase.json").write_text("{")
        with pytest.raises(BadRequestError, match="is damaged"):
            train(PAPER, resume=True)


@dataclass
class _Interrupting(PaintedSet):
    """Somebody presses Ctrl+C while image after image is read."""

    presses: tuple[int, ...] = (2,)

    def __getitem__(self, index: int) -> AnnotatedImage:
        if len(self.read) + 1 in self.presses:
            signal.raise_signal(signal.SIGINT)
        return super().__getitem__(index)


class TestStopping:
    def test_a_time_limit_stops_after_a_whole_step_with_weights(
        self, train: Callable[..., Trainer], tmp_path: Path
    ) -> None:
        trainer = train(PAPER, time_limit=0.0)
        assert not trainer.finished
        assert not trainer.interrupted
        assert trainer.progress.step == 1
        assert load_model(tmp_path / "run" / "weights")

    def test_the_limit_is_for_all_phases_together(
        self, train: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = [0.0]
        step = Trainer._one_step

        def tick(self: Trainer, *arguments: Any) -> Any:
            now[0] += 1
            return step(self, *arguments)

        monkeypatch.setattr(Trainer, "_one_step", tick)
        monkeypatch.setattr("lidiv_backend.training.stopping.time.monotonic", lambda: now[0])
        trainer = train(PAPER, time_limit=6.0)
        assert (trainer.progress.phase, trainer.progress.step) == (1, 2)

    def test_ctrl_c_stops_after_a_whole_step_and_resumes(
        self, train: Callable[..., Trainer], tmp_path: Path
    ) -> None:
        train(PAPER, "whole")
        before = signal.getsignal(signal.SIGINT)
        trainer = train(PAPER, "parts", images=_Interrupting())
        assert trainer.interrupted
        assert not trainer.finished
        assert trainer.progress.step == 2
        assert signal.getsignal(signal.SIGINT) is before
        assert train(PAPER, "parts", resume=True).finished
        assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))

    def test_a_second_ctrl_c_stops_at_once(self, train: Callable[..., Trainer]) -> None:
        class Twice(_Interrupting):
            def __getitem__(self, index: int) -> AnnotatedImage:
                signal.raise_signal(signal.SIGINT)
                return super().__getitem__(index)

        before = signal.getsignal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            train(PAPER, images=Twice(presses=(1,)))
        assert signal.getsignal(signal.SIGINT) is before


class TestPoison:
    @pytest.mark.parametrize("where", ["loss", "gradient"])
    def test_what_is_no_number_never_gets_into_the_weights(
        self,
        train: Callable[..., Trainer],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        where: str,
    ) -> None:
        step, count = Trainer._one_step, [0]

        def poison(self: Trainer, *arguments: Any) -> Any:
            outcome = step(self, *arguments)
            count[0] += 1
            if count[0] < 3:
                return outcome
            loss = outcome.loss * float("nan")
            if where == "gradient":
                # The loss is finite, its gradient is not: the square root's, at 0.
                loss = outcome.loss + (outcome.loss * 0).sqrt()
            return dataclasses.replace(outcome, loss=loss)

        monkeypatch.setattr(Trainer, "_one_step", poison)
        with pytest.raises(TrainingError, match=f"In step 3 the {where} .* --set rate="):
            train(PAPER, checkpoint_every=1)
        found = weights(tmp_path / "run")
        assert found
        assert all(tensor.isfinite().all() for tensor in found.values())
        saved = load_file(tmp_path / "run" / "checkpoint" / "model.safetensors")
        assert all(tensor.isfinite().all() for tensor in saved.values())
        note = json.loads((tmp_path / "run" / "checkpoint" / "phase.json").read_text())
        assert note["step"] == 2


class TestRecords:
    def test_model_json_says_how_it_was_trained(
        self, train: Callable[..., Trainer], tmp_path: Path
    ) -> None:
        config = dataclasses.replace(PAPER, inference=InferenceConfig(max_pixels=2000))
        train(config, validation=PaintedSet(), preset="paper", validate_every=4)
        about = read_description(tmp_path / "run" / "weights")
        assert about.proposal == config.proposal
        assert about.selection == config.selection
        assert about.inference == config.inference
        training = about.training
        assert training["data"] == "painted"
        assert training["data_images"] == 8
        assert training["preset"] == "paper"
        assert training["preset_steps"] == 300_000
        assert training["scale"] == round(4 / 300_000, 4)
        assert (training["phase"], training["steps_done"]) == ("g", 8)
        assert training["steps_planned"] == 8
        assert training["device"] == "cpu"
        assert training["loss"]["task"] == "jaccard"
        last = rows(tmp_path / "run")[-1]["validation"]
        assert training["validation"] == last
        assert set(last) == {"1", "2", "3", "5"}
        for best, selected in last.values():
            assert 0 <= selected <= best <= 1

    def test_model_json_says_how_the_last_phase_went(
        self, train: Callable[..., Trainer], tmp_path: Path
    ) -> None:
        train(dataclasses.replace(PAPER, steps=20), log_every=1)
        logged = {row["step"]: row for row in rows(tmp_path / "run") if row["phase"] == "g"}
        course = read_description(tmp_path / "run" / "weights").training["course"]
        assert [row["step"] for row in course] == list(range(2, 21, 2))
        for row in course:
            assert row == {key: round(logged[row["step"]][key], 4) for key in row}
            assert set(row) == {"step", "loss", "best", "selected"}

    def test_a_short_run_has_a_short_course(
        self, train: Callable[..., Trainer], tmp_path: Path
    ) -> None:
        for steps, told in ((9, []), (30, [10, 20, 30])):
            train(dataclasses.replace(PAPER, selection=None, steps=steps), str(steps), log_every=10)
            course = read_description(tmp_path / str(steps) / "weights").training["course"]
            assert [row["step"] for row in course] == told

    def test_a_person_can_look_at_examples(
        self, train: Callable[..., Trainer], tmp_path: Path
    ) -> None:
        config = dataclasses.replace(PAPER, steps=1, joint=True)
        train(config, validation=PaintedSet(), validation_images=4, draw=True)
        picture = cv2.imread(str(tmp_path / "run" / "examples.png"))
        assert picture is not None
        # 4 images after one click and after three; what was meant, and the 3 proposals.
        assert picture.shape[1] / (1 + 3) >= 260
        assert picture.shape[0] / 8 >= 260

    def test_validation_is_left_out_without_images(
        self, train: Callable[..., Trainer], tmp_path: Path
    ) -> None:
        train(PAPER, validate_every=1, draw=True)
        assert not (tmp_path / "run" / "examples.png").exists()

    def test_shares_of_the_heads_are_logged(
        self, train: Callable[..., Trainer], tmp_path: Path
    ) -> None:
        train(PAPER, log_every=1)
        for row in rows(tmp_path / "run"):
            assert sum(row["heads"]) == pytest.approx(1, abs=1e-3)
            assert 0 <= row["selected"] <= row["best"] <= 1
            assert 0 <= row["flat"] <= 1

    def test_says_where_nothing_can_be_learnt(
        self, train: Callable[..., Trainer], tmp_path: Path
    ) -> None:
        train(PAPER, "first")
        # The same masks, with logits so large that nothing has a gradient, and with small ones.
        for folder, factor in (("hard", 1e-6), ("soft", 1e3)):
            config = dataclasses.replace(PAPER, soften=factor)
            train(config, folder, begin_with="first", log_every=1)
        assert rows(tmp_path / "hard")[0]["flat"] > 0.98
        assert rows(tmp_path / "soft")[0]["flat"] == 0


class TestBeginning:
    def test_weights_go_on_where_they_were(
        self, train: Callable[..., Trainer], tmp_path: Path
    ) -> None:
        train(PAPER, "first")
        # A step so small that it moves nothing shows what the run began with.
        standing = dataclasses.replace(PAPER, steps=1, rate=1e-12, seed=5)
        train(standing, "second", begin_with="first")
        before, after = weights(tmp_path / "first"), weights(tmp_path / "second")
        for key, value in before.items():
            torch.testing.assert_close(after[key], value, rtol=0, atol=1e-9)

    def test_softened_weights_make_the_same_masks_and_are_not_softened_again_on_resuming(
        self, train: Callable[..., Trainer], tmp_path: Path
    ) -> None:
        train(PAPER, "first")
        standing = dataclasses.replace(PAPER, steps=2, rate=1e-12, soften=50.0)
        train(standing, "second", begin_with="first", time_limit=0.0)
        train(standing, "second", begin_with="first", resume=True)
        prompt = Prompt(clicks=pack_clicks([[Click(x=9, y=7, positive=True)]]))
        rgb = torch.rand(1, 3, 16, 20)
        logits = []
        for name in ("first", "second"):
            network = load_model(tmp_path / name / "weights").proposal
            with torch.no_grad():
                logits.append(network(network.project(rgb, ()), prompt).logits)
        torch.testing.assert_close(logits[1] * 50, logits[0], rtol=1e-3, atol=1e-4)
        assert logits[0].std() > 0

    def test_g_can_follow_an_f_that_was_trained_alone_at_a_rate_of_its_own(
        self, train: Callable[..., Trainer], tmp_path: Path
    ) -> None:
        train(dataclasses.replace(PAPER, selection=None), "first")
        for folder, rate in (("still", 1e-12), ("moving", 1e-2)):
            config = dataclasses.replace(PAPER, steps=1, rate=1e-12, selection_rate=rate)
            train(config, folder, begin_with="first")
        first, still, moving = (weights(tmp_path / name) for name in ("first", "still", "moving"))
        for key, value in first.items():
            torch.testing.assert_close(moving[key], value, rtol=0, atol=1e-9)
        furthest = max((moving[key] - still[key]).abs().max() for key in set(moving) - set(first))
        # Adam's first step is as long as the rate.
        assert furthest == pytest.approx(1e-2, rel=0.02)

    def test_model_json_tells_what_came_before_even_after_resuming(
        self, train: Callable[..., Trainer], tmp_path: Path
    ) -> None:
        train(PAPER, "first")
        train(dataclasses.replace(PAPER, seed=1), "second", begin_with="first")
        third = dataclasses.replace(PAPER, seed=2)
        train(third, "third", begin_with="second", time_limit=0.0)
        train(third, "third", resume=True)
        versions = [load_model(tmp_path / name / "weights").version for name in ("first", "second")]
        told = read_description(tmp_path / "third" / "weights").training["began_with"]
        assert told["version"] == versions[1]
        assert told["training"]["seed"] == 1
        assert "began_with" not in told["training"]
        (earlier,) = told["earlier"]
        assert earlier["version"] == versions[0]
        assert (earlier["steps_done"], earlier["crop"]) == (2 * PAPER.steps, PAPER.crop)
        assert earlier["loss"] == dataclasses.asdict(PAPER.loss)

    def test_weights_of_other_networks_are_refused(self, train: Callable[..., Trainer]) -> None:
        train(PAPER, "first")
        wider = dataclasses.replace(PAPER.proposal, width=PAPER.proposal.width * 2)
        other = dataclasses.replace(PAPER, proposal=wider)
        with pytest.raises(BadRequestError, match="of other networks"):
            train(other, "second", begin_with="first")


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"loss": LossConfig(task="dice")}, "loss.task is one of"),  # type: ignore[arg-type]
            ({"crop": None, "images": 2}, "without crop, images is 1"),
            ({"steps": 0}, "steps, images, targets are above 0"),
            ({"zoom": (2.0, 1.0)}, "zoom is two factors"),
            ({"zoom": (1.0,)}, "zoom is two factors"),
            ({"rate": 0.0}, "rate is above 0"),
            ({"soften": 0.0}, "soften is above 0"),
            (
                {"soften": 2.0, "proposal": ProposalConfig(encoder=None, body="unet")},
                "soften needs the architecture",
            ),
            ({"averaging": 1.0}, "averaging is at least 0 and below 1"),
            ({"iterations": ()}, "iterations are shares"),
            ({"iterations": (1.0, -0.5)}, "iterations are shares"),
            ({"kinds": {"instance": 0.0}}, "kinds have shares"),
            ({"dos": 1.5}, "dos and merged lie between"),
            ({"close_ups": 1.5}, "close_ups and collages lie between"),
            ({"collages": -0.5}, "close_ups and collages lie between"),
            ({"close_ups": 0.5, "crop": None}, "close_ups and collages need a crop"),
            ({"collages": 0.5, "views": 1}, "close_ups and collages need a crop, and no views"),
            (
                {"proposal": PYRAMID, "crop": 40},
                "crop is a multiple of 16",
            ),
            ({"grid": 3, "selection_grid": 3, "crop": 15}, "grids are 1, 2, 4, 8 or 16"),
            ({"grid": 4}, "g's grid is not finer than f's"),
            ({"click_grid": 3, "selection_grid": 3, "crop": 15}, "grids are 1, 2, 4, 8 or 16"),
            ({"click_grid": 4, "selection_grid": 2}, "g's grid is not finer than click_grid"),
            (
                {"click_grid": 2, "selection": None, "proposal": PYRAMID},
                "a grid needs the architecture",
            ),
            ({"click_grid": 8, "crop": 20, "selection": None}, "crop is a multiple of 8"),
            ({"selection_grid": 8, "crop": 20}, "crop is a multiple of 8"),
            ({"selection_grid": 2, "crop": None}, "crop is a multiple of 2"),
            (
                {
                    "grid": 2,
                    "selection_grid": 2,
                    "proposal": ProposalConfig(encoder=None, body="unet"),
                },
                "a grid needs the architecture",
            ),
            (
                {"selection_grid": 2, "selection": SelectionConfig(architecture="pooled")},
                "selection_grid needs a selection",
            ),
        ],
    )
    def test_settings_that_cannot_work(
        self, train: Callable[..., Trainer], change: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(BadRequestError, match=message):
            train(dataclasses.replace(PAPER, **change))

    def test_networks_that_do_not_fit(self, train: Callable[..., Trainer]) -> None:
        with pytest.raises(WeightsError, match="f has 3 outputs, g is made for 6"):
            train(dataclasses.replace(PAPER, selection=SelectionConfig()))


def test_the_default_networks_train_with_an_encoder(
    train: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def untrained(name: str) -> encoders.Encoder:
        return encoders.build_encoder(name, pretrained=False)

    monkeypatch.setattr(trainer_module, "build_encoder", untrained)
    config = dataclasses.replace(
        EVERYTHING,
        proposal=ProposalConfig(
            architecture="pyramid",
            encoder="mobilesam",
            heads=3,
            prompt=PromptChannels(previous=True, radius=1.0),
        ),
        selection=SelectionConfig(architecture="pooled", heads=3),
        crop=32,
        steps=2,
    )
    trainer = train(config, validation=PaintedSet())
    assert trainer.finished
    assert trainer.encoder is not None
    assert not any(parameter.requires_grad for parameter in trainer.encoder.parameters())
    # The encoder is fetched, not shipped.
    assert not any("backbone" in key for key in weights(tmp_path / "run"))


class TestKeptFeatures:
    config = dataclasses.replace(
        PAPER,
        proposal=ProposalConfig(heads=3),
        views=1,
        images=2,
        crop=32,
        grid=4,
        selection_grid=4,
    )

    @pytest.fixture
    def shown(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """Numbers of images that the encoder was shown, each time."""
        seen: list[int] = []

        def build(name: str) -> encoders.Encoder:
            torch.manual_seed(3)
            encoder = encoders.build_encoder(name, pretrained=False)
            encoder.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
            return encoder

        monkeypatch.setattr(trainer_module, "build_encoder", build)
        return seen

    def test_the_encoder_sees_each_view_once(
        self, train: Callable[..., Trainer], tmp_path: Path, shown: list[int]
    ) -> None:
        images, kept = PaintedSet(length=3), tmp_path / "kept"
        train(self.config, "first", images=images, features=kept)
        assert 0 < sum(shown) <= 3
        shown.clear()
        AcceleratorState._reset_state(reset_partial_state=True)
        train(self.config, "again", images=images, features=kept)
        assert not shown
        first, again = (weights(tmp_path / name) for name in ("first", "again"))
        assert all(torch.equal(first[key], again[key]) for key in first)

    def test_validation_pictures_are_not_among_them(
        self, train: Callable[..., Trainer], shown: list[int]
    ) -> None:
        images = PaintedSet(length=1)
        train(self.config, images=images, validation=PaintedSet(length=2), validate_every=4)
        # One view, and twice two pictures to look at, in f's phase and in g's.
        assert sum(shown) == 1 + 2 * 2


@pytest.mark.parametrize(
    ("gpus", "processes", "backends"),
    [(0, "2", []), (1, "1", []), (2, "2", []), (1, "2", ["gloo"]), (2, "3", ["gloo"])],
)
def test_processes_on_one_gpu_talk_by_what_allows_that(
    gpus: int, processes: str, backends: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    # Set by what is tested; put back afterwards.
    monkeypatch.setenv("ACCELERATE_BYPASS_DEVICE_MAP", "false")
    handlers = trainer_module._on_shared_gpu()
    assert [handler.to_kwargs()["backend"] for handler in handlers] == backends
    assert (os.environ["ACCELERATE_BYPASS_DEVICE_MAP"] == "true") == bool(backends)
