"""Training f and then g, or both at once: on one CPU, one GPU or several processes."""

from __future__ import annotations

import dataclasses
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, InitProcessGroupKwargs, KwargsHandler
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from lidiv_backend.clicks import Click, pack_clicks
from lidiv_backend.devices import best_precision, keep_freed_memory, place
from lidiv_backend.errors import BadRequestError, TrainingError
from lidiv_backend.model import (
    Model,
    ModelDescription,
    read_description,
    save_model,
)
from lidiv_backend.networks.encoders import Encoder, build_encoder
from lidiv_backend.networks.prompt import Prompt
from lidiv_backend.networks.proposal import HypercolumnNetwork
from lidiv_backend.records import ImageSet
from lidiv_backend.training.batches import Batch, load_draws
from lidiv_backend.training.checkpoints import CheckpointFolder, CheckpointNote, RunLog
from lidiv_backend.training.config import MOST_EARLIER, PRESETS, TrainingConfig
from lidiv_backend.training.draws import Draw, Draws, count_masks
from lidiv_backend.training.features import FeatureStore, describe_views
from lidiv_backend.training.pictures import draw_examples
from lidiv_backend.training.simulation import (
    centre_click,
    dos_clicks,
    next_training_click,
    sample_first_click,
    shared_click,
)
from lidiv_backend.training.step import Outcome, TrainingStep, networks_to_train
from lidiv_backend.training.stopping import StopRequest
from lidiv_backend.training.validation import Look, validate

_ESSENTIALS = (
    "phase",
    "steps_done",
    "images",
    "targets",
    "crop",
    "grid",
    "soften",
    "loss",
    "rate",
    "seconds",
    "mean_of",
)
#: Slope of the sigmoid below which a pixel counts as saturated: at a logit of about 9.
_FLAT = 1e-4
#: Gradients are scaled down to this norm.
_LARGEST_GRADIENT = 5.0


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
    preset
        Preset that the settings were derived from, of which a shorter run is a part.
    features
        Where the encoder's features are kept if there are ``views``; in `folder` if None.
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
    preset: str | None = None
    features: Path | None = None


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

    Raises
    ------
    BadRequestError
        If the settings break a rule.
    WeightsError
        If there are no such networks, or the encoder was not fetched.
    """

    def __init__(
        self,
        config: TrainingConfig,
        options: RunOptions,
        images: ImageSet,
        validation: ImageSet | None,
    ) -> None:
        config.validate()
        self.config = config
        self.options = options
        self.images = images
        self.validation = validation
        # Without a GPU, processes that are not told so would each train alone, over each other's
        # files.
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        cpu = options.cpu or (several and not torch.cuda.is_available())
        self.accelerator = Accelerator(
            mixed_precision=_precision(options),
            cpu=cpu,
            dataloader_config=DataLoaderConfiguration(dispatch_batches=False),
            kwargs_handlers=[] if cpu else _on_shared_gpu(),
        )
        torch.manual_seed(config.seed)
        self.device = self.accelerator.device
        self.encoder: Encoder | None = None
        if config.proposal.encoder is not None:
            self.encoder = build_encoder(config.proposal.encoder)
            place(self.encoder, self.device)
        self.proposal, self.selection = networks_to_train(config, build_encoder)
        self.progress = _Progress()
        self.recent: deque[dict[str, float]] = deque(maxlen=200)
        self.wins = np.zeros(config.proposal.heads)
        #: Whether the last `run` came to its end.
        self.finished = False
        #: Whether it was stopped by Ctrl+C.
        self.interrupted = False
        self._store = self._open_features()
        self._log = RunLog(options.folder)
        self._saved = CheckpointFolder(options.folder)
        self._masks = count_masks(images)
        self._ancestor: dict[str, Any] | None = None

    def _open_features(self) -> FeatureStore | None:
        """Where features are kept, if they can be used again."""
        config, encoder = self.config, self.encoder
        if not config.views or config.crop is None or encoder is None:
            return None
        made_for = describe_views(
            encoder.name,
            self.images.name,
            len(self.images),
            views=config.views,
            zoom=list(config.zoom),
            jitter=config.jitter,
        )
        # The files are made by one process, and opened by the others.
        with self.accelerator.main_process_first():
            return FeatureStore(
                self.options.features or self.options.folder / "features",
                count=len(self.images) * config.views,
                levels=encoder.levels,
                crop=config.crop,
                grid=config.grid,
                made_for=made_for,
            )

    def begin_with(self, model: Model) -> None:
        """Begin with trained weights instead of random ones; to be called before `run`.

        Weights without g, those of f's training alone, leave g random.

        Raises
        ------
        BadRequestError
            If the weights are of other networks.
        """
        theirs = model.description
        selections = (theirs.selection, self.config.selection)
        if theirs.proposal != self.config.proposal or (
            None not in selections and selections[0] != selections[1]
        ):
            raise BadRequestError(
                f"The weights {model.version} are of other networks than those to be trained.",
                remedy="Begin with weights of the same preset and settings.",
            )
        self.proposal.load_state_dict(model.proposal.state_dict())
        if self.config.soften != 1 and isinstance(self.proposal, HypercolumnNetwork):
            self.proposal.soften(self.config.soften)
        if self.selection is not None and model.selection is not None:
            self.selection.load_state_dict(model.selection.state_dict())
        before = {**theirs.training}
        parent = before.pop("began_with", None)
        # Of the weights before those, the essentials are told.
        earlier = [] if parent is None else [_stage(parent), *parent.get("earlier", ())]
        self._ancestor = {
            "version": model.version,
            "training": before,
            "earlier": earlier[:MOST_EARLIER],
        }

    @property
    def phases(self) -> tuple[str, ...]:
        """``f`` and then ``g``, or both at once."""
        if self.selection is None:
            return ("f",)
        if self.config.frozen:
            return ("g",)
        return ("joint",) if self.config.joint else ("f", "g")

    def run(self) -> Path:
        """Train until the last step, the time limit or Ctrl+C.

        Returns
        -------
        Path
            Folder of the weights; they are there after a time limit or Ctrl+C, too.

        Raises
        ------
        BadRequestError
            If there is nothing to resume, or something that would be overwritten.
        TrainingError
            If the loss is no number any more.
        """
        self.options.folder.mkdir(parents=True, exist_ok=True)
        keep_freed_memory()
        saved: int | None = None
        if self.options.resume:
            saved = self._resume()
        else:
            self._begin()
        self.finished = True
        with StopRequest(self.accelerator, seconds=self.options.time_limit) as stop:
            for number, phase in enumerate(self.phases):
                if saved is not None and number < saved:
                    continue
                if not self._run_phase(number, phase, stop, resume=saved == number):
                    self.finished = False
                    break
            self.interrupted = stop.interrupted
        return self.options.folder / "weights"

    def _begin(self) -> None:
        """Start from nothing."""
        if self.config.frozen and self._ancestor is None:
            raise BadRequestError(
                "f is to be left as it is, and has not been trained yet.",
                remedy="Say by --begin-with which weights it has.",
            )
        if self._saved.exists:
            raise BadRequestError(
                f"There is a run in {self.options.folder} already.",
                remedy="Go on with it by --resume, or name another folder.",
            )
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self._log.keep(lambda _: False)

    def _resume(self) -> int:
        """Phase to go on with."""
        if self.accelerator.is_main_process:
            self._saved.recover()
        self.accelerator.wait_for_everyone()
        note = self._saved.read(made_for=self._made_for())
        weights = self.options.folder / "weights"
        if self._ancestor is None and (weights / "model.json").is_file():
            self._ancestor = read_description(weights).training.get("began_with")
        if self.accelerator.is_main_process:
            # What was logged behind the checkpoint will be done, and logged, again.
            at = note.phase, note.step
            self._log.keep(lambda row: (self.phases.index(row["phase"]), row["step"]) <= at)
        return note.phase

    def _made_for(self) -> dict[str, Any]:
        """What has to be the same for the states of a checkpoint to fit."""
        config = self.config
        return {
            "proposal": config.proposal.to_json(),
            "selection": None if config.selection is None else config.selection.to_json(),
            "joint": config.joint,
            "averaging": config.averaging > 0,
            "processes": self.accelerator.num_processes,
        }

    def _run_phase(self, number: int, phase: str, stop: StopRequest, *, resume: bool) -> bool:
        """Run one phase; False if it was stopped before its end."""
        accelerator, config = self.accelerator, self.config
        step = TrainingStep(
            self.proposal,
            None if phase == "f" else self.selection,
            loss=config.loss,
            train_proposal=phase != "g",
            click_grid=config.click_grid,
            shuffle=config.shuffle,
        )
        self.proposal.requires_grad_(phase != "g")
        place(step, self.device)
        trained = [parameter for parameter in step.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            trained,
            lr=self._rate(phase),
            weight_decay=config.decay,
            fused=self.device.type == "cuda",
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
        self.recent.clear()
        self.wins[:] = 0
        if resume:
            accelerator.load_state(str(self._saved.path))
            # The rate and the decay are those of this run, which may be others.
            schedule.base_lrs = [self._rate(phase)] * len(optimizer.param_groups)
            for group in optimizer.param_groups:
                group["lr"] = self._rate(phase) * self._rate_factor(self.progress.step)
                group["weight_decay"] = config.decay
        else:
            self.progress.phase, self.progress.step = number, 0
        finished = self._loop(phase, step, wrapped, optimizer, schedule, average, stop)
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
        stop: StopRequest,
    ) -> bool:
        config, options, accelerator = self.config, self.options, self.accelerator
        started = monotonic()
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
                self._check("loss", outcome.loss, phase)
                accelerator.backward(outcome.loss)
                norm = accelerator.clip_grad_norm_(wrapped.parameters(), _LARGEST_GRADIENT)
                if accelerator.scaler is None:
                    # Half precision overflows now and then; its scaler skips such a step.
                    self._check("gradient", norm, phase)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad(set_to_none=True)
                if average is not None:
                    average.update_parameters(step)
                self.progress.step += 1
                self.progress.seconds = before + monotonic() - started
                bar.update()
                self._note(outcome, bar, phase)
                last = self.progress.step >= config.steps
                if last or self.progress.step % options.validate_every == 0:
                    self._validate(step if average is None else average.module, phase)
                if not last and self.progress.step % options.checkpoint_every == 0:
                    self._checkpoint(step, average)
                if stop.is_due():
                    break
        return self.progress.step >= config.steps

    def _check(self, what: str, value: Tensor | None, phase: str) -> None:
        """Stop before a value that is no number gets into the weights."""
        if value is None or torch.isfinite(value).all():
            return
        separate = phase == "g" and self.config.selection_rate is not None
        name = "selection_rate" if separate else "rate"
        saved = "There is no checkpoint yet"
        if self._saved.exists:
            saved = f"The last checkpoint in {self.options.folder} is good"
        raise TrainingError(
            f"In step {self.progress.step + 1} the {what} is no finite number any more. {saved}.",
            remedy="Go on from it, or begin again, with a smaller rate: "
            f"--set {name}={self._rate(phase) / 3:.1g}.",
        )

    def _rate(self, phase: str) -> float:
        """Learning rate of a phase, before its schedule."""
        config = self.config
        return (phase == "g" and config.selection_rate) or config.rate

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
        return iter(load_draws(draws, mine, images=config.images, workers=self.options.workers))

    def _one_step(self, step: TrainingStep, wrapped: nn.Module, draws: list[Draw]) -> Outcome:
        config = self.config
        number = self.progress.phase * config.steps + self.progress.step
        rng = np.random.default_rng([config.seed, 1, number, self.accelerator.process_index])
        # The same number of further clicks in all processes: each step waits for the slowest.
        together = np.random.default_rng([config.seed, 2, number])
        batch = Batch(draws, self.device)
        features = self._features(batch)
        clicks: list[list[Click]] = []
        for index in range(len(batch)):
            clicks.append(self._first_clicks(batch, index, clicks, rng))
        probabilities = np.array(config.iterations)
        further = int(together.choice(len(probabilities), p=probabilities / probabilities.sum()))
        previous: Tensor | None = None
        for _ in range(further):
            prompt = self._prompt(clicks, previous)
            with self.accelerator.autocast():
                previous = step.show(
                    batch.rgb, features, batch.owner, prompt, batch.truth, batch.valid
                )
            seen = batch.hard(previous)[:, 0]
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

    def _features(self, batch: Batch) -> tuple[Tensor, ...]:
        if self.encoder is None:
            return ()
        if self._store is None or min(batch.views) < 0:
            return self._encode(batch.rgb)
        kept = self._store.get(batch.views, batch.rgb, self._encode)
        if self.accelerator.mixed_precision == "no":
            return tuple(level.float() for level in kept)
        return kept

    @torch.no_grad()
    def _encode(self, rgb: Tensor) -> tuple[Tensor, ...]:
        assert self.encoder is not None  # noqa: S101
        with self.accelerator.autocast():
            features: tuple[Tensor, ...] = self.encoder(rgb)
        return features

    def _forward(
        self,
        step: nn.Module,
        batch: Batch,
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

    def _first_clicks(
        self, batch: Batch, index: int, before: list[list[Click]], rng: np.random.Generator
    ) -> list[Click]:
        """What an example begins with; ``before`` are the clicks of the examples before it."""
        wanted, ignored = batch.objects[index], batch.ignored[index]
        beside = [
            other
            for other in range(len(batch))
            if batch.owner_of[other] == batch.owner_of[index] and other != index
        ]
        if self.config.shared and rng.random() < self.config.shared:
            firsts = [before[other][0] for other in beside if other < index]
            click = shared_click(wanted, firsts, rng)
            if click is not None:
                return [click]
        recorded = batch.clicks[index]
        if recorded and rng.random() < self.config.recorded:
            return recorded[: int(rng.integers(1, len(recorded) + 1))]
        if rng.random() < self.config.dos:
            others = [batch.objects[other] for other in beside]
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
        self._write(
            {
                "phase": phase,
                **means,
                "heads": [round(float(part), 4) for part in share],
                "flat": round(_flat(outcome.masks), 4),
            }
        )

    def _write(self, values: dict[str, Any]) -> None:
        """Add a row to the log."""
        at = {"step": self.progress.step, "seconds": round(self.progress.seconds, 1)}
        self._log.append({**at, **values})

    def _validate(self, step: nn.Module, phase: str) -> None:
        """IoU of the best and of the selected mask after a few clicks on unseen images."""
        if self.validation is None or not self.accelerator.is_main_process:
            return
        config = self.config
        one_each = dataclasses.replace(config, targets=1, views=0)
        draws = Draws(
            self.validation, one_each, length=self.options.validation_images, augment=False
        )
        assert isinstance(step, TrainingStep)  # noqa: S101
        step.eval()
        seen = validate(
            draws,
            partial(self._prepare, step),
            score=None if step.selection is None else step.selection.score,
            # Whole images differ in size.
            batch_size=1 if config.crop is None else config.images * config.targets,
            device=self.device,
        )
        step.train()
        self._write({"phase": phase, "validation": seen.iou})
        draw_examples(self.options.folder / "examples.png", seen.examples)
        tqdm.write(f"step {self.progress.step}: best/selected IoU after clicks {seen}")

    def _prepare(self, step: TrainingStep, batch: Batch) -> Look:
        return partial(self._forward, step, batch, self._features(batch))

    def _checkpoint(self, step: TrainingStep, average: AveragedModel | None) -> None:
        """Write the state and the weights, aside and then renamed."""
        accelerator = self.accelerator
        if accelerator.is_main_process:
            self._saved.clear_aside()
        accelerator.wait_for_everyone()
        accelerator.save_state(str(self._saved.aside))
        # Every process writes its generators' states: all have to be there before the renaming.
        accelerator.wait_for_everyone()
        if not accelerator.is_main_process:
            return
        self._saved.commit(CheckpointNote(**vars(self.progress), made_for=self._made_for()))
        kept: nn.Module = step if average is None else average.module
        assert isinstance(kept, TrainingStep)  # noqa: S101
        selection = None if self.selection is None else (kept.selection or self.selection)
        save_model(
            self.options.folder / "weights",
            self._description(),
            kept.proposal.state_dict(),
            None if selection is None else selection.state_dict(),
        )

    def _description(self) -> ModelDescription:
        config = self.config
        training = {
            **config.to_json(),
            "data": self.images.name,
            "data_images": len(self.images),
            "data_masks": self._masks,
            "phase": self.phases[self.progress.phase],
            "steps_planned": config.steps * len(self.phases),
            "steps_done": config.steps * self.progress.phase + self.progress.step,
            "seconds": round(self.progress.seconds),
            "device": self.device.type,
            "processes": self.accelerator.num_processes,
            "precision": self.accelerator.mixed_precision,
            "torch": torch.__version__,
            "largest_gradient": _LARGEST_GRADIENT,
        }
        if self.options.preset is not None:
            whole = PRESETS[self.options.preset].steps
            training |= {
                "preset": self.options.preset,
                "preset_steps": whole,
                "scale": round(config.steps / whole, 4),
            }
        if self._ancestor is not None:
            training["began_with"] = self._ancestor
        rows = self._log.rows()
        training["course"] = course_of(rows, phase=self.phases[self.progress.phase])
        validations = [row["validation"] for row in rows if "validation" in row]
        if validations:
            training["validation"] = validations[-1]
        return ModelDescription(
            name=config.name,
            proposal=config.proposal,
            selection=config.selection,
            inference=config.inference,
            training=training,
        )


def _stage(ancestor: dict[str, Any]) -> dict[str, Any]:
    """What is told of a training long ago."""
    training = ancestor["training"]
    known = {name: training[name] for name in _ESSENTIALS if name in training}
    return {"version": ancestor["version"], **known}


def course_of(rows: Sequence[Mapping[str, Any]], *, phase: str) -> list[dict[str, float]]:
    """How a phase went, ten times from its beginning to its end.

    Parameters
    ----------
    rows
        Of the run's log.
    phase
        ``f``, ``g`` or ``joint``.

    Returns
    -------
    list of dict
        ``step``, and over up to 200 steps before it the mean ``loss``, and IoU of the ``best`` and
        of the ``selected`` mask.
    """
    logged = [row for row in rows if row["phase"] == phase and "loss" in row]
    ends = sorted({round(tenth * len(logged) / 10) for tenth in range(1, 11)} - {0})
    return [
        {key: round(logged[end - 1][key], 4) for key in ("step", "loss", "best", "selected")}
        for end in ends
    ]


def _flat(masks: Tensor) -> float:
    """Share of the pixels where the sigmoid is so flat that nothing is learnt."""
    return float((masks * (1 - masks) < _FLAT).float().mean())


def _on_shared_gpu() -> list[KwargsHandler]:
    """How processes talk to each other, if there are more of them here than GPUs.

    A step's clicks are placed by the processor, and one process alone leaves a GPU idle meanwhile.
    """
    gpus = torch.cuda.device_count()
    if not gpus or int(os.environ.get("LOCAL_WORLD_SIZE", "1")) <= gpus:
        return []
    # NCCL refuses two processes on one GPU, and accelerate gives each the GPU of its own number.
    os.environ["ACCELERATE_BYPASS_DEVICE_MAP"] = "true"
    return [InitProcessGroupKwargs(backend="gloo")]


def _precision(options: RunOptions) -> str:
    if options.precision != "auto":
        return options.precision
    on_gpu = torch.cuda.is_available() and not options.cpu
    if best_precision(torch.device("cuda" if on_gpu else "cpu")) == "bfloat16":
        return "bf16"
    return "fp16" if on_gpu else "no"
