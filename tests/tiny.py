"""Small models and data sets that need neither a GPU, nor a network, nor fetched encoders."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lidiv_backend.clicks import Click
from lidiv_backend.model import (
    InferenceConfig,
    Model,
    ModelDescription,
    build_networks,
    write_model,
)
from lidiv_backend.networks.encoders import Encoder, build_encoder
from lidiv_backend.networks.prompt import PromptChannels
from lidiv_backend.networks.proposal import ProposalConfig
from lidiv_backend.networks.selection import SelectionConfig
from lidiv_backend.predictor import CACHE_BYTES, EmbeddingCaches, Predictor, Proposal
from lidiv_backend.records import AnnotatedImage, ObjectMask
from lidiv_backend.training.config import PRESETS

CPU = torch.device("cpu")

#: Examples of `PaintedSet` as they are: crops alone, and nothing that is drawn besides.
SMALL_CROPS = dataclasses.replace(
    PRESETS["default"],
    crop=48,
    targets=2,
    zoom=(0.6, 1.6),
    jitter=0.0,
    merged=0.0,
    close_ups=0.0,
    collages=0.0,
)


def description(
    *,
    name: str = "tiny",
    previous: bool = False,
    pyramid: bool = False,
    heads: int = 4,
    ranked: bool = False,
    inference: InferenceConfig | None = None,
) -> ModelDescription:
    """What `model` builds: the paper's networks without an encoder, or the pyramid."""
    prompt = PromptChannels(previous=previous)
    proposal = ProposalConfig(encoder=None, heads=heads, prompt=prompt)
    selection = SelectionConfig(heads=heads)
    if pyramid:
        proposal = ProposalConfig(
            architecture="pyramid", encoder="mobilesam", heads=heads, prompt=prompt
        )
        selection = SelectionConfig(architecture="pooled", heads=heads)
    return ModelDescription(
        name=name,
        proposal=proposal,
        selection=None if ranked else selection,
        inference=inference or InferenceConfig(),
    )


def model(about: ModelDescription, *, seed: int = 0) -> Model:
    """A model with random weights whose masks depend on what is clicked."""
    torch.manual_seed(seed)
    proposal, selection = build_networks(about.proposal, about.selection)
    for network in (proposal, selection):
        for layer in network.modules() if network is not None else ():
            if isinstance(layer, nn.Conv2d):
                # torch's own choice lets what comes in fade from layer to layer.
                nn.init.kaiming_normal_(layer.weight, nonlinearity="leaky_relu")
        if network is not None:
            network.eval().requires_grad_(False)
    return Model(description=about, version=f"tiny-{seed}", proposal=proposal, selection=selection)


def predictor(
    about: ModelDescription,
    *,
    seed: int = 0,
    cache_bytes: int = CACHE_BYTES,
    caches: EmbeddingCaches | None = None,
    device: torch.device = CPU,
    replay: bool = False,
    **options: str,
) -> Predictor:
    """A predictor with random weights."""
    encoder: Encoder | None = None
    if about.proposal.encoder is not None:
        torch.manual_seed(seed)
        encoder = build_encoder(about.proposal.encoder, pretrained=False)
    made = model(about, seed=seed)
    return Predictor(
        made,
        encoder,
        device=device,
        cache_bytes=cache_bytes,
        caches=caches,
        replay=replay,
        **options,
    )


def saved(folder: Path, about: ModelDescription | None = None, *, seed: int = 0) -> Path:
    """A folder of random weights, as a trainer writes it."""
    write_model(folder, model(about or description(), seed=seed))
    return folder


def same(first: list[Proposal], second: list[Proposal]) -> bool:
    """Whether two answers hold the same masks with the same scores."""
    return [(p.head, p.score) for p in first] == [(p.head, p.score) for p in second] and all(
        (p.mask == q.mask).all() for p, q in zip(first, second, strict=True)
    )


def photo(height: int, width: int, *, seed: int = 0) -> NDArray[np.uint8]:
    """A photo of noise, uint8 (H, W, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@dataclass
class PaintedSet:
    """Images whose objects have colours of their own: each pixel says what it belongs to.

    Image i holds `count` rectangles; object k is painted ``(200, 40 + 60 * k, 40)`` on blue.
    """

    length: int = 8
    height: int = 60
    width: int = 80
    count: int = 2
    kinds: tuple[str, ...] = ("instance",)
    name: str = "painted"
    #: Indices that were asked for, in order.
    read: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> AnnotatedImage:
        self.read.append(index)
        rng = np.random.default_rng([7, index])
        rgb = np.full((self.height, self.width, 3), (30, 60, 220), dtype=np.uint8)
        rgb[..., 2] -= rng.integers(0, 40, (self.height, self.width), dtype=np.uint8)
        masks = []
        step = self.width // self.count
        for number in range(self.count):
            left = number * step + int(rng.integers(2, step // 4))
            right = left + int(rng.integers(step // 2, 2 * step // 3))
            top = int(rng.integers(2, self.height // 4))
            bottom = top + int(rng.integers(self.height // 3, self.height // 2))
            mask = np.zeros((self.height, self.width), dtype=bool)
            mask[top:bottom, left:right] = True
            rgb[mask] = (200, 40 + 60 * number, 40)
            masks.append(mask)
        return AnnotatedImage(
            name=f"{index}",
            rgb=rgb,
            objects=tuple(
                ObjectMask(name=f"{index}.{k}", mask=mask, kind=self.kinds[k % len(self.kinds)])
                for k, mask in enumerate(masks)
            ),
        )


class Drawn:
    """A method with one proposal for a click; tests say by `draw` what it is."""

    version = "drawn"

    def embed(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Keep the image as it is."""
        return rgb

    def predict(
        self,
        image: NDArray[np.uint8],
        clicks: Sequence[Click],
        previous: NDArray[np.bool_] | None = None,
    ) -> list[Proposal]:
        """Answer what `draw` gives."""
        mask, score = self.draw(image, clicks)
        return [Proposal(mask=mask, score=score, head=0)]

    def draw(
        self, image: NDArray[np.uint8], clicks: Sequence[Click]
    ) -> tuple[NDArray[np.bool_], float]:
        """Give a mask, and the IoU that is expected of it."""
        raise NotImplementedError


def painted_alike(image: NDArray[np.uint8], click: Click) -> NDArray[np.bool_]:
    """Find the object of a `PaintedSet` that was clicked on."""
    mask: NDArray[np.bool_] = (image == image[round(click.y), round(click.x)]).all(-1)
    return mask
