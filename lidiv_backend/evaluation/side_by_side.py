"""Training many variants at once: the same example for all of them, at every step.

Reading an image, drawing clicks and computing VGG's features cost as much as a step of a small
network. They are done once for all variants here, which also makes the budgets equal by
construction. What a variant becomes does not depend on which others are trained beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lidiv_backend.clicks import pack_clicks
from lidiv_backend.devices import best_precision, choose_device, keep_freed_memory, place
from lidiv_backend.errors import BadRequestError, TrainingError
from lidiv_backend.evaluation.variants import Budget, Variant
from lidiv_backend.model import ModelDescription, save_model
from lidiv_backend.networks.encoders import Encoder, build_encoder
from lidiv_backend.networks.prompt import Prompt
from lidiv_backend.networks.proposal import DosNetwork
from lidiv_backend.records import ImageSet
from lidiv_backend.training.batches import Batch, load_draws
from lidiv_backend.training.checkpoints import RunLog
from lidiv_backend.training.draws import Draws, count_masks
from lidiv_backend.training.simulation import dos_clicks
from lidiv_backend.training.step import Outcome, TrainingStep, networks_to_train
from lidiv_backend.training.stopping import StopSwitch

_CHECKPOINT = "training.pt"
_CHECKPOINT_EVERY = 100
_LOG_EVERY = 25
_LARGEST_GRADIENT = 5.0
_PHASES = ("f", "g")


class _Student:
    """One variant in one phase: its networks, optimiser and schedule."""

    def __init__(
        self, variant: Variant, budget: Budget, device: torch.device, vgg: Encoder
    ) -> None:
        self.variant = variant
        self.config = variant.config(budget)
        torch.manual_seed(budget.seed)
        self.proposal, self.selection = networks_to_train(self.config, lambda _: vgg)
        self._budget = budget
        self._device = device
        self.seconds = 0.0
        self.recent: dict[str, float] = {}
        self._enter("f")

    def _enter(self, phase: str) -> None:
        """Prepare a phase."""
        self.phase = phase
        self.step = TrainingStep(
            self.proposal,
            self.selection if phase == "g" else None,
            loss=self.config.loss,
            train_proposal=phase == "f",
            shuffle=self.config.shuffle,
        )
        self.proposal.requires_grad_(phase == "f")
        place(self.step, self._device)
        trained = [p for p in self.step.parameters() if p.requires_grad]
        rate = self.config.rate if phase == "f" else self._budget.rate
        self.optimizer = torch.optim.AdamW(
            trained, lr=rate, weight_decay=self.config.decay, fused=self._device.type == "cuda"
        )
        self.recent = {}
        self._rate = rate
        self._parameters = trained

    def enter(self, phase: str) -> None:
        """Go on to a phase, unless it is in it."""
        if self.phase != phase:
            self._enter(phase)

    def learn(self, number: int, steps: int, outcome: Outcome) -> None:
        """Take an optimiser step; ``number`` counts them from 0."""
        if not torch.isfinite(outcome.loss):
            raise TrainingError(
                f"In step {number + 1} of {self.phase} the loss of {self.variant.label} is no "
                "finite number any more.",
                remedy="Leave it out: with the other variants behind --variants, the same command "
                "goes on with them.",
            )
        outcome.loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._parameters, _LARGEST_GRADIENT)
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate * rate_factor(number, steps, self._budget.warmup)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        best, chosen = outcome.iou.amax(1), outcome.iou.gather(1, outcome.selected[:, None])
        for name, value in (("best", best), ("selected", chosen)):
            before = self.recent.get(name, float(value.mean()))
            self.recent[name] = 0.99 * before + 0.01 * float(value.mean())

    def state_dict(self) -> dict[str, Any]:
        return {
            "phase": self.phase,
            "seconds": self.seconds,
            "recent": self.recent,
            "proposal": self.proposal.state_dict(),
            "selection": None if self.selection is None else self.selection.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._enter(state["phase"])
        self.seconds, self.recent = state["seconds"], state["recent"]
        self.proposal.load_state_dict(state["proposal"])
        if self.selection is not None:
            self.selection.load_state_dict(state["selection"])
        self.optimizer.load_state_dict(state["optimizer"])


def rate_factor(step: int, steps: int, warmup: int) -> float:
    """Share of the learning rate at a step, counted from 0: a warm-up and a cosine to 0."""
    if not warmup:
        return 1.0
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return 0.5 * (1 + float(np.cos(np.pi * min(1.0, done))))


class SideBySide:
    """Trains variants together and writes their weights.

    Parameters
    ----------
    variants
        Which; those whose weights are in the folder already are left out.
    budget
        What each of them is given.
    images
        Training images.
    folder
        Gets ``weights/LABEL`` for each variant; a checkpoint and a log lie beside while it runs.
    workers
        Processes that read images.

    Raises
    ------
    BadRequestError
        If the folder holds an unfinished training of other variants or of another budget.
    """

    def __init__(
        self,
        variants: Sequence[Variant],
        budget: Budget,
        images: ImageSet,
        folder: Path,
        *,
        workers: int = 1,
    ) -> None:
        self.budget = budget
        self.images = images
        self.folder = folder
        self.workers = workers
        self.device = choose_device(None)
        self.variants = [v for v in variants if not self._is_done(v)]
        self._masks = count_masks(images)
        self._log = RunLog(folder)
        self._at = (0, 0)
        self._students: list[_Student] = []

    def weights(self, label: str) -> Path:
        """Where a variant's weights are, or will be."""
        return self.folder / "weights" / label

    def _is_done(self, variant: Variant) -> bool:
        return (self.weights(variant.label) / "model.json").is_file()

    def run(self, *, minutes: float | None = None) -> bool:
        """Train until the last step, the time limit or Ctrl+C; go on from a checkpoint.

        Returns
        -------
        bool
            Whether all weights are there.
        """
        if not self.variants:
            return True
        self.folder.mkdir(parents=True, exist_ok=True)
        keep_freed_memory()
        vgg = build_encoder(DosNetwork.begins_with)
        place(vgg, self.device)
        self._students = [_Student(v, self.budget, self.device, vgg) for v in self.variants]
        self._load()
        steps = {"f": self.budget.steps, "g": self.budget.selection_steps}
        with StopSwitch(seconds=None if minutes is None else 60 * minutes) as stop:
            first_phase, first_step = self._at
            for place_, phase in enumerate(_PHASES):
                if place_ < first_phase:
                    continue
                own = [s for s in self._students if phase == "f" or s.selection is not None]
                for student in own:
                    student.enter(phase)
                begin = first_step if place_ == first_phase else 0
                if not self._run_phase(place_, begin, steps[phase], own, vgg, stop):
                    return False
                if phase == "f":
                    self._finish([s for s in self._students if s.selection is None])
        self._finish([s for s in self._students if s.selection is not None])
        (self.folder / _CHECKPOINT).unlink(missing_ok=True)
        return True

    def _run_phase(
        self,
        number: int,
        begin: int,
        steps: int,
        students: Sequence[_Student],
        vgg: Encoder,
        stop: StopSwitch,
    ) -> bool:
        """Run one phase from a step on; False if it was stopped before its end."""
        phase = _PHASES[number]
        offset = number * self.budget.steps
        config = self.variants[0].config(self.budget)
        each = self.budget.images
        draws = Draws(self.images, config, length=(offset + steps) * each)
        wanted = range((offset + begin) * each, len(draws))
        loader = load_draws(draws, wanted, images=each, workers=self.workers)
        bar = tqdm(total=steps, initial=begin, desc=phase, smoothing=0.05)
        with bar:
            for step, group in enumerate(loader if students else (), start=begin):
                self._one_step(step, steps, offset, Batch(group, self.device), students, vgg)
                self._at = (number, step + 1)
                bar.update()
                if (step + 1) % _LOG_EVERY == 0:
                    self._note(phase, step + 1, students, bar)
                due = stop.is_due()
                if due or (step + 1) % _CHECKPOINT_EVERY == 0:
                    self._save()
                if due and step + 1 < steps:
                    return False
        self._at = (number + 1, 0)
        return True

    def _one_step(
        self,
        step: int,
        steps: int,
        offset: int,
        batch: Batch,
        students: Sequence[_Student],
        vgg: Encoder,
    ) -> None:
        rng = np.random.default_rng([self.budget.seed, 1, offset + step])
        clicks = [
            dos_clicks(wanted, [], rng, ignore=ignored)
            for wanted, ignored in zip(batch.objects, batch.ignored, strict=True)
        ]
        prompt = Prompt(clicks=pack_clicks(clicks).to(self.device))
        augmented = any(s.variant.proposal.encoder is not None for s in students)
        with self._autocast():
            features: tuple[Tensor, ...] = ()
            if augmented:
                with torch.no_grad():
                    features = vgg(batch.rgb)
            for student in students:
                started = monotonic()
                seen = () if student.variant.proposal.encoder is None else features
                outcome: Outcome = student.step(
                    batch.rgb, seen, batch.owner, prompt, batch.truth, batch.valid
                )
                with torch.autocast(self.device.type, enabled=False):
                    student.learn(step, steps, outcome)
                student.seconds += monotonic() - started

    def _autocast(self) -> torch.autocast:
        enabled = best_precision(self.device) == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def _note(self, phase: str, step: int, students: Sequence[_Student], bar: Any) -> None:
        rows = {
            student.variant.label: {
                **{name: round(value, 4) for name, value in student.recent.items()},
                "seconds": round(student.seconds, 1),
            }
            for student in students
        }
        self._log.append({"phase": phase, "step": step, "variants": rows})
        first = students[0]
        bar.set_postfix_str(
            f"{first.variant.label}: best {first.recent['best']:.3f}, "
            f"selected {first.recent['selected']:.3f}"
        )

    def _save(self) -> None:
        aside = self.folder / f"{_CHECKPOINT}.part"
        torch.save(
            {
                "budget": str(self.budget),
                "at": self._at,
                "students": {s.variant.label: s.state_dict() for s in self._students},
            },
            aside,
        )
        aside.replace(self.folder / _CHECKPOINT)

    def _load(self) -> None:
        """Go on from the checkpoint, where there is one."""
        path = self.folder / _CHECKPOINT
        if not path.exists():
            return
        saved = torch.load(path, map_location=self.device, weights_only=True)
        # Those that need no g were finished before, and are not asked for again.
        missing = [v.label for v in self.variants if v.label not in saved["students"]]
        if missing or saved["budget"] != str(self.budget):
            raise BadRequestError(
                f"{path} is an unfinished training of {', '.join(saved['students'])}, each: "
                f"{saved['budget']}.",
                remedy=f"Go on with it by the same options, or delete {path}.",
            )
        self._at = saved["at"]
        for student in self._students:
            student.load_state_dict(saved["students"][student.variant.label])

    def _finish(self, students: Sequence[_Student]) -> None:
        """Write weights."""
        for student in students:
            config = student.config
            training = {
                **config.to_json(),
                "budget": str(self.budget),
                "selection_steps": self.budget.selection_steps,
                "data": self.images.name,
                "data_images": len(self.images),
                "data_masks": self._masks,
                "seconds": round(student.seconds),
                "device": self.device.type,
                "precision": best_precision(self.device),
                "torch": torch.__version__,
            }
            description = ModelDescription(
                name=config.name,
                proposal=config.proposal,
                selection=config.selection,
                inference=config.inference,
                training=training,
            )
            selection = student.selection
            save_model(
                self.weights(student.variant.label),
                description,
                student.proposal.state_dict(),
                None if selection is None else selection.state_dict(),
            )
