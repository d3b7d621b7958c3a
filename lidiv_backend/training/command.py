"""The command `lidiv train`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from pathlib import Path
from typing import Any, TypeVar

from lidiv_backend.errors import BadRequestError, DataError
from lidiv_backend.model import load_model
from lidiv_backend.records import ImageSet
from lidiv_backend.training.config import PRESETS, training_preset

_Config = TypeVar("_Config")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `lidiv train`."""
    parser.add_argument("preset", choices=sorted(PRESETS), help="what to train")
    parser.add_argument(
        "--data",
        help="data set such as shards:/path, folder:/path, coco:/images,/annotations.json; "
        "shards:$LIDIV_DATA/train if not given",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument(
        "--begin-with",
        metavar="WEIGHTS",
        help="a preset or a folder of weights to begin with, such as weights/default",
    )
    parser.add_argument("--steps", type=int, help="optimiser steps instead of the preset's")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any other setting, such as crop=256, proposal.heads=1, loss.task='\"l1\"', "
        "selection=null; values are JSON",
    )
    parser.add_argument(
        "--precision",
        default="auto",
        choices=["auto", "no", "bf16", "fp16"],
        help="what the device does best if not given",
    )
    parser.add_argument("--cpu", action="store_true", help="stay on the CPU")
    parser.add_argument("--workers", type=int, default=1, help="processes that read images")
    parser.add_argument(
        "--checkpoint-every", type=int, default=500, metavar="STEPS", help="save the state so often"
    )
    parser.add_argument(
        "--validate-every", type=int, default=500, metavar="STEPS", help="look at unseen images"
    )
    parser.add_argument(
        "--validation-images", type=int, default=48, metavar="N", help="at so many of them"
    )
    parser.add_argument(
        "--features",
        type=Path,
        metavar="FOLDER",
        help="where features are kept if views are set; several runs may share it; in --out if "
        "not given",
    )
    parser.add_argument("--minutes", type=float, help="stop after so many minutes, resumably")


def run(args: argparse.Namespace) -> int:
    """Run `lidiv train`."""
    from lidiv_backend.training.data import open_image_set
    from lidiv_backend.training.pictures import draw_run
    from lidiv_backend.training.references import write_references
    from lidiv_backend.training.trainer import RunOptions, Trainer

    config = training_preset(args.preset)
    if args.steps is not None:
        config = dataclasses.replace(config, steps=args.steps)
    for assignment in args.set:
        config = override(config, assignment)
    if config.soften != 1 and args.begin_with is None and not args.resume:
        raise BadRequestError(
            "There are no weights whose logits could be softened.",
            remedy="Name them with --begin-with.",
        )
    spec = args.data or default_data()
    options = RunOptions(
        folder=args.out,
        precision=args.precision,
        cpu=args.cpu,
        workers=args.workers,
        checkpoint_every=args.checkpoint_every,
        validate_every=args.validate_every,
        validation_images=args.validation_images,
        resume=args.resume,
        time_limit=None if args.minutes is None else args.minutes * 60,
        preset=args.preset,
        features=args.features,
    )
    images = open_image_set(spec, split="train")
    validation: ImageSet | None = None
    try:
        validation = open_image_set(spec, split="val")
    except DataError as error:
        print(f"training without validation: {error.message}")
    trainer = Trainer(config, options, images, validation)
    if args.begin_with is not None:
        trainer.begin_with(load_model(args.begin_with))
    weights = trainer.run()
    if trainer.accelerator.is_main_process:
        if trainer.finished:
            write_references(weights, images)
        done = f"stopped after step {trainer.progress.step}: --resume goes on"
        print("finished" if trainer.finished else done)
        print(f"weights: {weights}\npicture: {draw_run(args.out)}")
    return 130 if trainer.interrupted and not trainer.finished else 0


def default_data() -> str:
    """The shared pool under ``LIDIV_DATA``.

    Raises
    ------
    BadRequestError
        If the variable is not set.
    """
    folder = os.environ.get("LIDIV_DATA")
    if not folder:
        raise BadRequestError(
            "No data set was named.",
            remedy="Give --data, or set LIDIV_DATA to the folder that holds train/.",
        )
    return f"shards:{folder}/train"


def override(config: _Config, assignment: str) -> _Config:
    """Change one setting, ``name=value`` or ``part.name=value`` with a JSON value.

    Raises
    ------
    BadRequestError
        If there is no such setting, or the value is not JSON.
    """
    name, _, text = assignment.partition("=")
    try:
        value = json.loads(text)
    except ValueError:
        raise BadRequestError(
            f"The value in --set {assignment} is not JSON.",
            remedy="Write texts in double quotes: loss.task='\"l1\"'.",
        ) from None
    changed: _Config = _assign(config, name.split("."), value, assignment)
    return changed


def _assign(config: Any, path: list[str], value: Any, assignment: str) -> Any:
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise BadRequestError(
            f"--set {assignment}: there is nothing called '{path[0]}' in {config!r}.",
            remedy="Name a setting that the preset has.",
        )
    fields = {field.name: field for field in dataclasses.fields(config)}
    if path[0] not in fields:
        raise BadRequestError(
            f"--set {assignment}: there is no setting '{path[0]}'.",
            remedy=f"Known are {', '.join(sorted(fields))}.",
        )
    current = getattr(config, path[0])
    if len(path) > 1:
        value = _assign(current, path[1:], value, assignment)
    elif isinstance(value, list):
        value = tuple(value)
    optional = "None" in str(fields[path[0]].type)
    if not (optional if value is None else current is None or _alike(current, value)):
        raise BadRequestError(
            f"--set {assignment}: {value!r} cannot take the place of {current!r}.",
            remedy="Write a value of the same kind, as JSON.",
        )
    return dataclasses.replace(config, **{path[0]: value})


def _alike(current: Any, value: Any) -> bool:
    """Whether a value is of the kind of the one whose place it takes; 1 will do for 1.0."""
    if isinstance(current, tuple):
        return isinstance(value, tuple) and all(_alike(current[0], part) for part in value)
    if isinstance(current, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is type(current)
