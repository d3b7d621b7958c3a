"""The command `lidiv average`: the mean of what several trainings made of f.

Stages of one training end in different places of the same valley, and their mean tends to lie
nearer to its floor than any of them (stochastic weight averaging). g chose among other masks than f
makes then, so it has to learn on: ``lidiv train --begin-with MEAN --set joint=false --set
frozen=true``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from lidiv_backend.errors import BadRequestError
from lidiv_backend.model import Model, load_model, write_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `lidiv average`."""
    parser.add_argument("weights", nargs="+", help="presets or folders of weights, two at least")
    parser.add_argument(
        "--selection",
        metavar="WEIGHTS",
        help="whose g is taken, and what is said of its training; the last ones if not given",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the mean")


def run(args: argparse.Namespace) -> int:
    """Run `lidiv average`."""
    models = [load_model(name) for name in args.weights]
    chosen = models[-1] if args.selection is None else load_model(args.selection)
    version = write_model(args.out, average_proposals(models, chosen))
    print(f"{args.out}: {version}, the mean of {', '.join(model.version for model in models)}")
    return 0


def average_proposals(models: Sequence[Model], chosen: Model) -> Model:
    """Take the mean of several f.

    Parameters
    ----------
    models
        Whose f, two at least, of one architecture and begun with the same weights once.
    chosen
        Gives g and the description. Its networks are changed.

    Returns
    -------
    Model
        What it scored is not known any more, and its description says of what it is the mean.

    Raises
    ------
    BadRequestError
        If there is nothing to average, or architectures differ.
    """
    if len(models) < 2:
        raise BadRequestError("A mean is of two weights at least.", remedy="Name more of them.")
    for model in models:
        if model.description.proposal != chosen.description.proposal:
            raise BadRequestError(
                f"f of {model.version} is another network than that of {chosen.version}.",
                remedy="Name weights of the same preset and settings.",
            )
    states = [model.proposal.state_dict() for model in models]
    mean = {name: _mean([state[name] for state in states]) for name in states[0]}
    chosen.proposal.load_state_dict(mean)
    training = {**chosen.description.training, "mean_of": [model.version for model in models]}
    # In its own crops the mean was never looked at.
    training.pop("validation", None)
    return replace(chosen, description=replace(chosen.description, training=training, results={}))


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    # Counters, and the like, are no weights.
    if not tensors[0].is_floating_point():
        return tensors[-1]
    return torch.stack([tensor.double() for tensor in tensors]).mean(0).to(tensors[0].dtype)
