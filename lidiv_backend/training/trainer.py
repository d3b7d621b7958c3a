"""Training f and then g, or both at once: on one CPU, one GPU or several processes."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from lidiv_backend.clicks import Click, pack_clicks
from lidiv_backend.devices import best_precision, place
from lidiv_backend.errors import BadRequestError
from lidiv_backend.model import ModelDescription, save_model
from lidiv_backend.networks.encoders import Encoder, build_encoder
from lidiv_backend.networks.prompt import Prompt
from lidiv_backend.networks.proposal import build_proposal_network
from lidiv_backend.networks.selection import build_selection_network
from lidiv_backend.records import ImageSet
from lidiv_backend.training.config import TrainingConfig
from lidiv_backend.training.draws import Draw, Draws
from lidiv_backend.training.simulation import (
    centre_click,
    dos_clicks,
    next_training_click,
    sample_first_click,
)
from lidiv_backend.training.step import Outcome, TrainingStep

_CHECKPOINT = "checkpoint"
#: Clicks after which the validation looks at the masks.
_VALIDATION_CLICKS = (1, 2, 3, 5)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a training runs, as opposed to what it trains.

    Parameters
    ----------
    folder
        Where checkpoints, log, pictures and the resulting weights go.
    precision
        ``bf16``, ``fp16`` or ``no``; chosen by the device if ``auto``.
    cpu
        Stay on the CPU even where there is a GPU.
    workers
        Processes that read images.
    checkpoint_every, validate_every, log_every
        In steps.
    validation_images
        Number of validation examples.
    resume
        Go on from the last checkpoint in `folder`.
    time_limit
        Seconds after which to write a checkpoint and stop; None for no limit.
    """

    folder: Path
    precision: str = "auto"
    cpu: bool = False
    workers: int = 1
    checkpoint_every: int = 500
    validate_every: int = 500
    log_every: int = 10
    validation_images: int = 48
    resume: bool = False
    time_limit: float | None = None


class _Progress:
    """How far a run has come; saved with the checkpoint."""

    def __init__(self) -> None:
        self.phase = 0
        self.step = 0
        self.seconds = 0.0

    def state_dict(self) -> dict[str, Any]:
        return vars(self).copy()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


class Trainer:
    """Trains a model and writes its weights.

    Parameters
    ----------
    config
        What is trained.
    options
        How.
    images
        Training images.
    validation
        Images to look at between; never trained on. None for no validation.
    """

    def __init__(
        self,
        config: TrainingConfig,
        options: RunOptions,
        images: ImageSet,
        validation: ImageSet | None,
    ) -> None:
        self.config = config
        self.options = options
        self.images = images
        self.validation = validation
        self.accelerator = Accelerator(
            mixed_precision=_precision(options),
            cpu=options.cpu,
            dataloader_config=DataLoaderConfiguration(dispatch_batches=False),
        )
        torch.manual_seed(config.seed)
        self.device = self.accelerator.device
        self.encoder: Encoder | None = None
        if config.proposal.encoder is not None:
            self.encoder = build_encoder(config.proposal.encoder).to(self.device)
        self.proposal = build_proposal_network(config.proposal)
        self.selection = (
            None if config.selection is None else build_selection_network(config.selection)
        )
        if config.selection is not None and config.selection.heads != config.proposal.heads:
            raise BadRequestError(
                f"f has {config.proposal.heads} outputs, g is made for {config.selection.heads}.",
                remedy="Set proposal.heads and selection.heads to the same number.",
            )
        self.progress = _Progress()
        self.recent: deque[dict[str, float]] = deque(maxlen=200)
        self.wins = np.zeros(config.proposal.heads)

    @property
    def phases(self) -> tuple[str, ...]:
        """``f`` and then ``g``, or both at once."""
        if self.selection is None:
            return ("f",)
        return ("joint",) if self.config.joint else ("f", "g")

    def run(self) -> Path:
        """Train until the last step or the time limit.

        Returns
        -------
        Path
            Folder of the weights; they are there after a time limit, too.
        """
        self.options.folder.mkdir(parents=True, exist_ok=True)
        saved = self._saved_phase() if self.options.resume else None
        for number, phase in enumerate(self.phases):
            if saved is not None and number < saved:
                continue
            if not self._run_phase(number, phase, resume=saved == number):
                break
        return self.options.folder / "weights"

    def _run_phase(self, number: int, phase: str, *, resume: bool) -> bool:
        """Run one phase; False if the time limit came first."""
        accelerator, config = self.accelerator, self.config
        step = TrainingStep(
            self.proposal,
            None if phase == "f" else self.selection,
            loss=config.loss,
            train_proposal=phase != "g",
        )
        self.proposal.requires_grad_(phase != "g")
        place(step, self.device)
        trained = [parameter for parameter in step.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            trained, lr=config.rate, weight_decay=config.decay, fused=self.device.type == "cuda"
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate_factor)
        average: AveragedModel | None = None
        if config.averaging:
            average = AveragedModel(
                step,
                multi_avg_fn=get_ema_multi_avg_fn(config.averaging),  # type: ignore[no-untyped-call]
                use_buffers=True,
            )
            accelerator.register_for_checkpointing(average)
        wrapped, optimizer = accelerator.prepare(step, optimizer)
        accelerator.register_for_checkpointing(schedule, self.progress)
        if resume:
            accelerator.load_state(str(self.options.folder / _CHECKPOINT))
        else:
            self.progress.phase, self.progress.step = number, 0
        finished = self._loop(phase, step, wrapped, optimizer, schedule, average)
        self._checkpoint(step, average)
        if average is not None:
            step.load_state_dict(average.module.state_dict())
        accelerator.free_memory()
        accelerator._custom_objects.clear()  # accelerate has no public way to forget them
        return finished

    def _loop(
        self,
        phase: str,
        step: TrainingStep,
        wrapped: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LambdaLR,
        average: AveragedModel | None,
    ) -> bool:
        config, options, accelerator = self.config, self.options, self.accelerator
        started = time.monotonic()
        before = self.progress.seconds
        bar = tqdm(
            total=config.steps,
            initial=self.progress.step,
            desc=f"{config.name} {phase}",
            disable=not accelerator.is_main_process,
            smoothing=0.05,
        )
        with bar:
            for draws in self._batches():
                outcome = self._one_step(step, wrapped, draws)
                accelerator.backward(outcome.loss)
                accelerator.clip_grad_norm_(wrapped.parameters(), 5.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad(set_to_none=True)
                if average is not None:
                    average.update_parameters(step)
                self.progress.step += 1
                self.progress.seconds = before + time.monotonic() - started
                bar.update()
                self._note(outcome, bar, phase)
                judged = step if average is None else average.module
                if self.progress.step % options.validate_every == 0:
                    self._validate(judged, phase)
                if self.progress.step % options.checkpoint_every == 0:
                    self._checkpoint(step, average)
                limit = options.time_limit
                if limit is not None and time.monotonic() - started > limit:
                    return self.progress.step >= config.steps
        return True

    def _rate_factor(self, step: int) -> float:
        config = self.config
        if not config.warmup:
            return 1.0
        if step < config.warmup:
            return (step + 1) / config.warmup
        done = min(1.0, (step - config.warmup) / max(1, config.steps - config.warmup))
        return 0.5 * (1 + float(np.cos(np.pi * done))) + 1e-3

    def _batches(self) -> Iterator[list[Draw]]:
        """Batches of this process, from the step at which the run stands."""
        config, accelerator = self.config, self.accelerator
        share = config.images * accelerator.num_processes
        # g's phase sees other examples than f's.
        offset = self.progress.phase * config.steps * share
        draws = Draws(self.images, config, length=offset + config.steps * share)
        first = offset + self.progress.step * share + accelerator.process_index
        mine = range(first, len(draws), accelerator.num_processes)
        return iter(
            DataLoader(
                Subset(draws, mine),
                batch_size=config.images,
                num_workers=self.options.workers,
                collate_fn=list,
                multiprocessing_context="forkserver" if self.options.workers else None,
                prefetch_factor=4 if self.options.workers else None,
            )
        )

    def _one_step(self, step: TrainingStep, wrapped: nn.Module, draws: list[Draw]) -> Outcome:
        config = self.config
        number = self.progress.phase * config.steps + self.progress.step
        rng = np.random.default_rng([config.seed, 1, number, self.accelerator.process_index])
        batch = _Batch(draws, self.device)
        features = self._features(batch.rgb)
        clicks = [self._first_clicks(batch, index, rng) for index in range(len(batch.truth))]
        probabilities = np.array(config.iterations)
        further = int(rng.choice(len(probabilities), p=probabilities / probabilities.sum()))
        previous: Tensor | None = None
        for _ in range(further):
            prompt = self._prompt(clicks, previous)
            with self.accelerator.autocast():
                previous = step.show(batch.rgb, features, batch.owner, prompt)
            seen = _hard(previous, batch)
            if rng.random() < 0.5:
                # Callers of the predictor may hand in the mask as it was shown, without its doubts.
                previous = (previous > 0.5).float()
            for index, wanted in enumerate(batch.objects):
                click = next_training_click(
                    wanted, seen[index], clicks[index], rng, ignore=batch.ignored[index]
                )
                if click is not None:
                    clicks[index].append(click)
        return self._forward(wrapped, batch, features, clicks, previous)

    def _features(self, rgb: Tensor) -> tuple[Tensor, ...]:
        if self.encoder is None:
            return ()
        with torch.no_grad(), self.accelerator.autocast():
            features: tuple[Tensor, ...] = self.encoder(rgb)
        return features

    def _forward(
        self,
        step: nn.Module,
        batch: _Batch,
        features: Sequence[Tensor],
        clicks: list[list[Click]],
        previous: Tensor | None,
    ) -> Outcome:
        prompt = self._prompt(clicks, previous)
        with self.accelerator.autocast():
            outcome: Outcome = step(
                batch.rgb, features, batch.owner, prompt, batch.truth, batch.valid
            )
        return outcome

    def _prompt(self, clicks: list[list[Click]], previous: Tensor | None) -> Prompt:
        return Prompt(clicks=pack_clicks(clicks).to(self.device), previous=previous)

    def _first_clicks(self, batch: _Batch, index: int, rng: np.random.Generator) -> list[Click]:
        wanted, ignored = batch.objects[index], batch.ignored[index]
        if rng.random() < self.config.dos:
            others = [
                batch.objects[other]
                for other in range(len(batch.objects))
                if batch.owner_of[other] == batch.owner_of[index] and other != index
            ]
            return dos_clicks(
                wanted, others, rng, ignore=ignored, protocol=self.config.dos_protocol
            )
        if rng.random() < 0.3:
            click = centre_click(wanted, np.zeros_like(wanted), [], ignored)
            if click is not None:
                return [click]
        return [sample_first_click(wanted, rng, ignored)]

    def _note(self, outcome: Outcome, bar: Any, phase: str) -> None:
        """Log what a step found."""
        best = outcome.iou.max(1)
        selected = outcome.iou.gather(1, outcome.selected[:, None])
        self.wins = 0.99 * self.wins + 0.01 * np.bincount(
            best.indices.cpu().numpy(), minlength=len(self.wins)
        )
        self.recent.append(
            {
                "loss": float(outcome.loss.detach()),
                "best": float(best.values.mean()),
                "selected": float(selected.mean()),
            }
        )
        if self.progress.step % self.options.log_every or not self.accelerator.is_main_process:
            return
        means = {key: float(np.mean([row[key] for row in self.recent])) for key in self.recent[0]}
        share = self.wins / max(self.wins.sum(), 1e-9)
        heads = "/".join(f"{100 * part:.0f}" for part in share)
        bar.set_postfix_str(
            f"loss {means['loss']:.3f} best {means['best']:.3f} "
            f"selected {means['selected']:.3f} heads {heads} %"
        )
        self._log({"phase": phase, **means, "heads": [round(float(part), 4) for part in share]})

    def _log(self, values: dict[str, Any]) -> None:
        record = {
            "step": self.progress.step,
            "seconds": round(self.progress.seconds, 1),
            **values,
        }
        with (self.options.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")

    @torch.no_grad()
    def _validate(self, step: nn.Module, phase: str) -> None:
        """IoU of the best and of the selected mask after a few clicks on unseen images."""
        if self.validation is None or not self.accelerator.is_main_process:
            return
        config = self.config
        one_each = dataclasses.replace(config, targets=1)
        draws = Draws(
            self.validation, one_each, length=self.options.validation_images, augment=False
        )
        totals: dict[int, list[tuple[float, float]]] = {n: [] for n in _VALIDATION_CLICKS}
        share = config.images * config.targets
        loader = DataLoader(draws, batch_size=share, collate_fn=list)
        for group in loader:
            batch = _Batch(group, self.device)
            features = self._features(batch.rgb)
            clicks: list[list[Click]] = [[] for _ in batch.objects]
            seen = np.zeros((len(batch.objects), *batch.objects[0].shape), dtype=bool)
            previous: Tensor | None = None
            for number in range(1, max(_VALIDATION_CLICKS) + 1):
                for index, wanted in enumerate(batch.objects):
                    click = centre_click(wanted, seen[index], clicks[index], batch.ignored[index])
                    if click is not None:
                        clicks[index].append(click)
                outcome = self._forward(step, batch, features, clicks, previous)
                chosen = outcome.selected
                previous = outcome.masks[torch.arange(len(chosen)), chosen].unsqueeze(1)
                seen = _hard(previous, batch)
                if number in totals:
                    found = outcome.iou.gather(1, chosen[:, None]).squeeze(1)
                    totals[number] += zip(outcome.iou.amax(1).tolist(), found.tolist(), strict=True)
        values = {
            str(number): [round(float(value), 4) for value in np.mean(pairs, axis=0)]
            for number, pairs in totals.items()
        }
        self._log({"phase": phase, "validation": values})
        shown = ", ".join(f"{n}: {best:.3f}/{chosen:.3f}" for n, (best, chosen) in values.items())
        tqdm.write(f"step {self.progress.step}: best/selected IoU after clicks {shown}")

    def _checkpoint(self, step: TrainingStep, average: AveragedModel | None) -> None:
        """Write the state and the weights, aside and then renamed."""
        self.accelerator.wait_for_everyone()
        aside = self.options.folder / f"{_CHECKPOINT}.part"
        if self.accelerator.is_main_process and aside.exists():
            shutil.rmtree(aside)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(aside))
        if not self.accelerator.is_main_process:
            return
        (aside / "phase.json").write_text(json.dumps(vars(self.progress)))
        target, old = self.options.folder / _CHECKPOINT, self.options.folder / f"{_CHECKPOINT}.old"
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            target.rename(old)
        aside.rename(target)
        shutil.rmtree(old, ignore_errors=True)
        kept: nn.Module = step if average is None else average.module
        assert isinstance(kept, TrainingStep)  # noqa: S101
        selection = None if self.selection is None else (kept.selection or self.selection)
        save_model(
            self.options.folder / "weights",
            self._description(),
            kept.proposal.state_dict(),
            None if selection is None else selection.state_dict(),
        )

    def _saved_phase(self) -> int:
        path = self.options.folder / _CHECKPOINT / "phase.json"
        old = self.options.folder / f"{_CHECKPOINT}.old"
        if not path.exists() and old.exists():
            # Stopped between the two renames.
            old.rename(path.parent)
        if not path.exists():
            raise BadRequestError(
                f"There is no checkpoint in {self.options.folder} to resume from.",
                remedy="Leave --resume away, or name the folder of the run.",
            )
        return int(json.loads(path.read_text())["phase"])

    def _description(self) -> ModelDescription:
        config = self.config
        training = {
            **config.to_json(),
            "data": self.images.name,
            "data_images": len(self.images),
            "phase": self.phases[self.progress.phase],
            "steps_done": self.progress.step,
            "seconds": round(self.progress.seconds),
            "device": self.device.type,
            "processes": self.accelerator.num_processes,
            "precision": self.accelerator.mixed_precision,
        }
        return ModelDescription(
            name=config.name,
            proposal=config.proposal,
            selection=config.selection,
            inference=config.inference,
            training=training,
        )


class _Batch:
    """Draws on the device, their B = I * T examples one after the other."""

    def __init__(self, draws: list[Draw], device: torch.device) -> None:
        self.rgb = torch.stack([draw["rgb"] for draw in draws]).to(device).float().div_(255)
        self.rgb = self.rgb.contiguous(memory_format=torch.channels_last)
        masks = torch.cat([draw["masks"] for draw in draws])
        valid = torch.cat([draw["valid"] for draw in draws])
        self.owner_of = [i for i, draw in enumerate(draws) for _ in range(len(draw["masks"]))]
        self.owner = torch.tensor(self.owner_of, device=device)
        self.objects = list((masks & valid).numpy())
        self.ignored = list((~valid).numpy())
        self.truth = masks.unsqueeze(1).to(device).float()
        self.valid = valid.unsqueeze(1).to(device).float()


def _hard(masks: Tensor, batch: _Batch) -> NDArray[np.bool_]:
    """Masks (B, 1, h, w) in [0, 1] as bool (B, H, W) at the size of the batch."""
    size = batch.truth.shape[-2:]
    full = nn.functional.interpolate(masks, size, mode="bilinear", align_corners=False)
    return (full[:, 0] > 0.5).cpu().numpy()


def _precision(options: RunOptions) -> str:
    if options.precision != "auto":
        return options.precision
    on_gpu = torch.cuda.is_available() and not options.cpu
    if best_precision(torch.device("cuda" if on_gpu else "cpu")) == "bfloat16":
        return "bf16"
    return "fp16" if on_gpu else "no"
