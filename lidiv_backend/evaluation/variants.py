"""Every network of Tables 2, 3 and 4 and of Figure 5 that has to be trained for the comparison."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from lidiv_backend.errors import BadRequestError
from lidiv_backend.model import InferenceConfig
from lidiv_backend.networks.prompt import PromptChannels
from lidiv_backend.networks.proposal import ProposalConfig
from lidiv_backend.networks.selection import SelectionConfig
from lidiv_backend.training.config import LossConfig, TrainingConfig, training_preset

#: DOS is tuned from ImageNet's weights, which a rate as for networks from scratch would destroy.
_DOS_RATE = 1e-4
#: At 1e-3 the U-net's masks are all of the image, or nothing, after a hundred steps, and stay so.
_UNET_RATE = 3e-4
_PAPER = training_preset("paper")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What every variant is given alike.

    Parameters
    ----------
    steps, selection_steps
        Optimiser steps of f, and of g behind it.
    images, targets
        Images for a step, and examples (an object with clicks) for each image.
    crop
        Side of the square that is cut from each image, in pixels; None trains on whole images.
    zoom
        Least and largest factor by which an image is scaled before the crop.
    grid
        Context aggregation networks, f or g, are trained on the means of cells of so many pixels.
    rate
        Learning rate of f and g.
    warmup
        Steps until the rate is reached; it then falls to 0 along a cosine. With 0 it is constant,
        as in the paper.
    relaxation
        Part of the mean over all M in f's loss. With few steps most of the M masks are never the
        best one and stay as they began; with the paper's many, 0.
    longest_side
        Images are reduced to this when the trained networks are used; None keeps their size.
    seed
        Of everything random.
    """

    steps: int
    selection_steps: int
    crop: int | None
    images: int = 1
    targets: int = 1
    zoom: tuple[float, float] = (1.0, 1.0)
    grid: int = 1
    rate: float
    warmup: int = 0
    relaxation: float = 0.0
    longest_side: int | None = None
    seed: int = 0

    def __str__(self) -> str:
        where = "whole images" if self.crop is None else f"squares of {self.crop} pixels"
        if self.zoom != (1.0, 1.0):
            low, high = self.zoom
            where += f" of images scaled by {low:g} to {high:g}"
        if self.grid > 1:
            where += f", on means of {self.grid} x {self.grid} pixels where the network can"
        fall = f", warm-up of {self.warmup} steps, then a cosine" if self.warmup else ", constant"
        mean = f", {self.relaxation:g} of the mean over all masks" if self.relaxation else ""
        return (
            f"{self.steps} steps for f and {self.selection_steps} for g, images a step: "
            f"{self.images}, examples of each: {self.targets}, {where}, learning rate "
            f"{self.rate:g}{fall}{mean}, seed {self.seed}"
        )


#: For two to three hours on two cores, measuring included: which way things point. Of pictures of
#: 384 pixels the squares hold all, or nearly all, at the size at which the networks are used.
QUICK = Budget(
    steps=1200,
    selection_steps=600,
    images=4,
    targets=2,
    crop=160,
    zoom=(0.35, 0.5),
    grid=4,
    rate=1e-3,
    warmup=30,
    relaxation=0.05,
    longest_side=160,
)
#: For half a day on two cores, measuring included.
HALF_DAY = replace(QUICK, steps=3000, selection_steps=1500, warmup=50)
#: The paper's: 100 epochs at full size.
FULL = Budget(
    steps=_PAPER.steps,
    selection_steps=_PAPER.steps,
    crop=None,
    rate=_PAPER.rate,
)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The full model with something removed or replaced.

    Parameters
    ----------
    label
        As in `lidiv_backend.evaluation.reference`.
    proposal, selection
        Architectures of f and g; None where nothing is selected.
    loss
        What f minimises.
    rate
        Its own learning rate for f; None for the budget's.
    """

    label: str
    proposal: ProposalConfig = _PAPER.proposal
    selection: SelectionConfig | None = _PAPER.selection
    loss: LossConfig = LossConfig()
    rate: float | None = None

    def config(self, budget: Budget) -> TrainingConfig:
        """Settings of its training: the preset ``paper``, apart from the variant and the budget."""
        return replace(
            _PAPER,
            name=self.label,
            proposal=self.proposal,
            selection=self.selection,
            inference=InferenceConfig(longest_side=budget.longest_side),
            loss=replace(self.loss, relaxation=budget.relaxation),
            steps=budget.steps,
            images=budget.images,
            targets=budget.targets,
            crop=budget.crop,
            zoom=budget.zoom,
            grid=budget.grid if self.proposal.has_grid else 1,
            selection_grid=budget.grid,
            rate=self.rate or budget.rate,
            warmup=budget.warmup,
            seed=budget.seed,
        )


def _with_heads(label: str, heads: int) -> Variant:
    """A model of M masks; with one there is nothing to select."""
    return Variant(
        label=label,
        proposal=ProposalConfig(heads=heads),
        selection=SelectionConfig(heads=heads) if heads > 1 else None,
    )


#: Label -> variant, in the order in which they matter.
VARIANTS: dict[str, Variant] = {
    variant.label: variant
    for variant in (
        Variant(label="full"),
        Variant(
            label="dos",
            proposal=ProposalConfig(
                architecture="dos",
                encoder=None,
                heads=1,
                prompt=PromptChannels(clicks=False),
            ),
            selection=None,
            loss=LossConfig(task="cross_entropy", clicks=0.0),
            rate=_DOS_RATE,
        ),
        Variant(label="no-augmented-input", proposal=ProposalConfig(encoder=None)),
        Variant(label="cross-entropy", loss=LossConfig(task="cross_entropy")),
        Variant(label="l1", loss=LossConfig(task="l1")),
        _with_heads("no-diversity", 1),
        Variant(
            label="no-distance-transforms",
            proposal=ProposalConfig(prompt=PromptChannels(distances=False)),
            selection=SelectionConfig(distances=False),
        ),
        Variant(
            label="no-click-input",
            proposal=ProposalConfig(prompt=PromptChannels(clicks=False)),
            selection=SelectionConfig(clicks=False),
        ),
        Variant(label="no-soft-constraints", loss=LossConfig(clicks=0.0)),
        Variant(label="rdl", selection=None, loss=LossConfig(ranked=True)),
        Variant(label="unet", proposal=ProposalConfig(body="unet"), rate=_UNET_RATE),
        # M = 1 and M = 6 are `no-diversity` and `full`.
        *(_with_heads(f"m{heads}", heads) for heads in (2, 3, 4, 5, 7, 8)),
    )
}


def choose_variants(labels: Iterable[str] | None) -> tuple[Variant, ...]:
    """The variants of these labels; all if None.

    Raises
    ------
    BadRequestError
        If there is no such variant.
    """
    wanted = list(VARIANTS if labels is None else labels)
    unknown = [label for label in wanted if label not in VARIANTS]
    if unknown:
        raise BadRequestError(
            f"There are no variants {', '.join(unknown)}.",
            remedy=f"Known are: {', '.join(VARIANTS)}.",
        )
    return tuple(VARIANTS[label] for label in wanted)
