"""How a model is trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from lidiv_backend.errors import BadRequestError
from lidiv_backend.model import InferenceConfig
from lidiv_backend.networks.prompt import PromptChannels
from lidiv_backend.networks.proposal import ARCHITECTURES, ProposalConfig
from lidiv_backend.networks.selection import SelectionConfig
from lidiv_backend.training.simulation import DosProtocol

#: Weights tell of so many trainings before the last two what they were.
MOST_EARLIER = 8

Task = Literal["jaccard", "cross_entropy", "l1"]


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What f is trained to minimise; every term is inside the minimum of Eq. 5.

    Parameters
    ----------
    task
        ``jaccard`` (Eq. 3), ``cross_entropy`` or ``l1`` (Table 3).
    focal
        Weight of the normalised focal loss.
    clicks
        Weight of the click term (Eq. 4); 0 is "without soft constraints".
    ranked
        Add the ranked diversity term (Eq. 7).
    relaxation
        Part of the mean over all M in the loss, so that no head dies; 0 in the paper.
    """

    task: Task = "jaccard"
    focal: float = 0.0
    clicks: float = 1.0
    ranked: bool = False
    relaxation: float = 0.0


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Everything that decides what comes out of `lidiv train`, apart from the data.

    Parameters
    ----------
    name
        Preset or experiment.
    proposal, selection
        Architectures of f and g; no g for ranked diversity.
    inference
        How the trained networks are used.
    loss
        What f minimises.
    joint
        Train g beside f on f's detached outputs; otherwise g follows f, as in the paper.
    frozen
        Leave f as it is and train g alone.
    steps
        Number of optimiser steps for f (and, unless joint, again for g).
    images, targets
        Images for a step, and objects for each image.
    crop
        Side of the square that is cut from each image, in pixels; None takes the whole image at
        its size, one image a step.
    zoom
        Least and largest factor by which an image is scaled before the crop.
    close_ups
        Probability that the crop is taken from within the object, if that is large enough, so that
        it fills most of what is seen.
    collages
        Probability that the crop shows several images beside each other, each of them reduced, so
        that objects are small.
    views
        Cut so many crops from each image once, as often as not mirrored, and show no others, so
        that what the frozen encoder sees in them can be kept; 0 cuts another for each example.
        ``crop`` only.
    grid, selection_grid
        Train f, and g, on the means of cells of so many pixels instead of on every pixel: the
        same weights, in a fraction of the time, before the finest details are learnt at full
        resolution. f ``hypercolumn`` with ``can``, and g ``can``, only.
    click_grid
        Place further clicks on masks made from the means of cells of so many pixels, which costs a
        fraction of those that are learnt from; 1 for the grid of f. ``hypercolumn`` with ``can``
        only.
    soften
        Divide the logits of the weights that are begun with by this number. Their masks, cut at
        0.5, stay as they are, but where they are wrong the loss has a gradient again: with Eq. 3
        alone logits grow until the sigmoid is flat all over the image. ``hypercolumn`` with ``can``
        only.
    shuffle
        Hand the masks to g in an order drawn for each example, as the paper does (Section 4). Of
        the shipped weights none was trained so: in the order of the heads g first learns which of
        them is right most often. g ``can`` only; the other does not see an order.
    rate, warmup, decay
        Learning rate, steps until it is reached, and weight decay. With ``warmup`` 0 the rate is
        constant (the paper); otherwise it then falls to 0 along a cosine.
    selection_rate
        Learning rate of g where it is trained after f; that of f if None, as in the paper.
    averaging
        Decay of the moving average of the weights that is kept as the result; 0 keeps the last.
    iterations
        Probabilities of 0, 1, 2, ... further clicks placed where the mask is wrong (RITM).
    dos
        Probability that an example begins with a set of clicks after Xu et al. rather than one.
    dos_protocol
        How those are drawn.
    recorded
        Probability that an example begins with clicks that its annotator made, where they are
        known.
    shared
        Probability that an example begins with the click of another object of the image, if that
        click is on its own, too: a person and their coat ask for two masks with one click, so that
        one mask cannot be the answer to both.
    kinds
        How often a mask of each kind is drawn, relative to the others.
    merged
        Probability that two objects of an image are merged into one.
    jitter
        Strength of the colour augmentation; 0 for none.
    seed
        Seed of everything random.
    """

    name: str
    proposal: ProposalConfig
    selection: SelectionConfig | None
    inference: InferenceConfig = InferenceConfig()
    loss: LossConfig = LossConfig()
    joint: bool = False
    frozen: bool = False
    steps: int = 100_000
    images: int = 1
    targets: int = 1
    crop: int | None = None
    zoom: tuple[float, float] = (1.0, 1.0)
    close_ups: float = 0.0
    collages: float = 0.0
    views: int = 0
    grid: int = 1
    selection_grid: int = 1
    click_grid: int = 1
    soften: float = 1.0
    shuffle: bool = False
    rate: float = 1e-4
    selection_rate: float | None = None
    warmup: int = 0
    decay: float = 0.0
    averaging: float = 0.0
    iterations: tuple[float, ...] = (1.0,)
    dos: float = 1.0
    dos_protocol: DosProtocol = DosProtocol()
    recorded: float = 0.0
    shared: float = 0.0
    kinds: Mapping[str, float] = field(default_factory=lambda: {"instance": 1.0})
    merged: float = 0.0
    jitter: float = 0.0
    seed: int = 0

    def validate(self) -> None:
        """Refuse settings with which no training can run.

        Raises
        ------
        BadRequestError
            If there are any; the message names the first.
        """
        network = ARCHITECTURES.get(self.proposal.architecture)
        grids = (self.grid, self.selection_grid, self.click_grid)
        cell = max(getattr(network, "multiple", 1), *grids)
        crop_fits = cell == 1 if self.crop is None else self.crop > 0 and self.crop % cell == 0
        low, high = self.zoom if len(self.zoom) == 2 else (0.0, 0.0)
        rules = (
            (self.loss.task in get_args(Task), f"loss.task is one of {', '.join(get_args(Task))}"),
            (min(self.steps, self.images, self.targets) >= 1, "steps, images, targets are above 0"),
            (crop_fits, f"crop is a multiple of {cell} for this architecture"),
            (all(grid in (1, 2, 4, 8, 16) for grid in grids), "grids are 1, 2, 4, 8 or 16"),
            (self.selection_grid % self.grid == 0, "g's grid is not finer than f's"),
            (
                self.selection is None or self.selection_grid % self.click_grid == 0,
                "g's grid is not finer than click_grid",
            ),
            (
                max(self.grid, self.click_grid) == 1 or self.proposal.has_grid,
                "a grid needs the architecture hypercolumn, body can",
            ),
            (
                self.selection_grid == 1
                or self.selection is None
                or self.selection.architecture == "can",
                "selection_grid needs a selection of the architecture can",
            ),
            (
                not self.shuffle
                or (self.selection is not None and self.selection.architecture == "can"),
                "shuffle needs a selection of the architecture can",
            ),
            (self.soften > 0, "soften is above 0"),
            (
                self.soften == 1 or self.proposal.has_grid,
                "soften needs the architecture hypercolumn, body can",
            ),
            (self.crop is not None or self.images == 1, "without crop, images is 1"),
            (self.views >= 0, "views is not below 0"),
            (not self.views or self.crop is not None, "views need a crop"),
            (
                self.close_ups == self.collages == 0 or (self.crop is not None and not self.views),
                "close_ups and collages need a crop, and no views",
            ),
            (
                0 <= self.close_ups <= 1 and 0 <= self.collages <= 1,
                "close_ups and collages lie between 0 and 1",
            ),
            (0 < low <= high, "zoom is two factors above 0, the smaller one first"),
            (self.rate > 0 and self.warmup >= 0 and self.decay >= 0, "rate is above 0"),
            (not self.frozen or self.selection is not None, "without a selection, frozen is false"),
            ((self.selection_rate or 1) > 0, "selection_rate is above 0, or null"),
            (0 <= self.averaging < 1, "averaging is at least 0 and below 1"),
            (_are_shares(self.iterations), "iterations are shares, not all of them 0"),
            (_are_shares(self.kinds.values()), "kinds have shares, not all of them 0"),
            (0 <= self.dos <= 1 and 0 <= self.merged <= 1, "dos and merged lie between 0 and 1"),
            (0 <= self.recorded <= 1, "recorded lies between 0 and 1"),
            (0 <= self.shared <= 1, "shared lies between 0 and 1"),
            (0 <= self.loss.relaxation <= 1, "loss.relaxation lies between 0 and 1"),
        )
        for holds, rule in rules:
            if not holds:
                raise BadRequestError(
                    f"The settings of '{self.name}' break a rule: {rule}.",
                    remedy="Change them with --set NAME=VALUE.",
                )

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``model.json``, without what it says elsewhere."""
        values = asdict(self)
        for key in ("name", "proposal", "selection", "inference"):
            del values[key]
        return values


def _are_shares(shares: Iterable[float]) -> bool:
    values = tuple(shares)
    return min(values, default=0.0) >= 0 and sum(values) > 0


_ALL_KINDS = {"instance": 1.0, "component": 0.25, "part": 0.35, "region": 0.5, "merged": 1.0}

PRESETS: dict[str, TrainingConfig] = {
    "paper": TrainingConfig(
        name="paper",
        proposal=ProposalConfig(),
        selection=SelectionConfig(),
        # The pool's stand-in for SBD: 100 epochs of one mask a step.
        steps=300_000,
        kinds={"instance": 1.0, "component": 0.25},
    ),
    "default": TrainingConfig(
        name="default",
        proposal=ProposalConfig(
            architecture="pyramid",
            encoder="mobilesam",
            prompt=PromptChannels(previous=True, radius=1.0),
        ),
        selection=SelectionConfig(architecture="pooled"),
        inference=InferenceConfig(
            longest_side=640, max_pixels=None, merge_iou=0.9, zoom_side=448, look_ahead=0.3
        ),
        loss=LossConfig(focal=1.0, clicks=0.1, relaxation=0.05),
        joint=True,
        steps=30_000,
        images=4,
        targets=3,
        crop=320,
        zoom=(0.9, 2.0),
        close_ups=0.4,
        collages=0.25,
        rate=1e-3,
        warmup=200,
        decay=0.01,
        averaging=0.998,
        iterations=(0.42, 0.25, 0.15, 0.1, 0.08),
        dos=0.2,
        kinds=_ALL_KINDS,
        merged=0.05,
        jitter=0.3,
    ),
}


def training_preset(name: str) -> TrainingConfig:
    """The settings of a preset.

    Raises
    ------
    BadRequestError
        If there is no such preset.
    """
    try:
        return PRESETS[name]
    except KeyError:
        raise BadRequestError(
            f"There is no training preset '{name}'.", remedy=f"Known are {', '.join(PRESETS)}."
        ) from None
