"""What annotators chose among alternatives, as supervision for g.

Who steps from the first proposal to the third says three things: what is meant, and that two masks
which g rated higher are not. g learns both: the IoU of every one of f's masks with the accepted
one, as in all training, and, pair by pair, that the chosen mask goes before the rejected ones
(RankNet; Burges et al., ICML 2005). f stays as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from lidiv_backend.clicks import pack_clicks
from lidiv_backend.errors import LidivError
from lidiv_backend.losses import hard_iou
from lidiv_backend.model import load_model, write_model
from lidiv_backend.networks.encoders import Encoder, build_encoder
from lidiv_backend.networks.prompt import Prompt
from lidiv_backend.records import AnnotatedImage, ImageSet, ObjectMask
from lidiv_backend.training.config import LossConfig
from lidiv_backend.training.step import TrainingStep

_LOG = logging.getLogger(__name__)
#: So many masks are learnt from at most; as many again that were taken as they came keep g level.
LIMIT = 48
#: Passes over them, and the weight of the pairs beside the IoU.
EPOCHS, PAIRS = 8, 1.0


@dataclass(frozen=True, kw_only=True)
class _Choice:
    """One prompt as g sees it, and what the annotator made of it."""

    rgb: Tensor
    prompt: Prompt
    masks: Tensor
    features: tuple[Tensor, ...]
    iou: Tensor
    chosen: int
    rejected: tuple[int, ...]


def pair_loss(rated: Tensor, chosen: int, rejected: Sequence[int]) -> Tensor:
    """How far rejected masks are rated above the chosen one.

    Parameters
    ----------
    rated
        (M,), what g gave.
    chosen, rejected
        Heads of f.

    Returns
    -------
    Tensor
        Scalar; 0 without rejected ones.
    """
    if not rejected:
        return rated.sum() * 0
    return F.softplus(rated[list(rejected)] - rated[chosen]).mean()


def learn_choices(weights: Path, images: ImageSet, *, rate: float, seed: int) -> int:
    """Train the g of a folder of weights on what annotators chose; the folder is written anew.

    Parameters
    ----------
    weights
        The folder.
    images
        At the size at which the networks see them. Masks whose `ObjectMask.rejected` names heads
        were chosen among alternatives; others with clicks were taken as they came.
    rate
        Learning rate.
    seed
        Of the order.

    Returns
    -------
    int
        From how many choices g learnt; with 0, and without a g, nothing is changed.
    """
    stepped, taken = _gather(images)
    if not stepped:
        return 0
    model = load_model(weights)
    if model.selection is None:
        return 0
    encoder: Encoder | None = None
    if model.description.proposal.encoder is not None:
        encoder = build_encoder(model.description.proposal.encoder)
    step = TrainingStep(
        model.proposal, model.selection, loss=LossConfig(), train_proposal=False
    ).eval()
    seen = [_seen(step, encoder, image, item) for image, item in (*stepped, *taken)]
    _train(step, seen, rate=rate, seed=seed)
    description = replace(
        model.description,
        training={**model.description.training, "choices": len(stepped)},
    )
    write_model(weights, replace(model, description=description))
    return len(stepped)


_Item = tuple[AnnotatedImage, ObjectMask]


def _gather(images: ImageSet) -> tuple[list[_Item], list[_Item]]:
    """Masks that were chosen among alternatives, and as many that were taken as they came."""
    stepped: list[_Item] = []
    taken: list[_Item] = []
    for index in range(len(images)):
        try:
            image = images[index]
        except LidivError as error:
            _LOG.warning("%s", error)
            continue
        for item in image.objects:
            if item.clicks:
                (stepped if item.rejected else taken).append((image, item))
    stepped = stepped[:LIMIT]
    return stepped, list(islice(taken, len(stepped)))


@torch.no_grad()
def _seen(
    step: TrainingStep, encoder: Encoder | None, image: AnnotatedImage, item: ObjectMask
) -> _Choice:
    """Replay the clicks that led to a mask; the last answer is what the choice was made from."""
    rgb = torch.tensor(image.rgb).permute(2, 0, 1)[None].float().div_(255)
    features = () if encoder is None else tuple(encoder(rgb))
    owner = torch.zeros(1, dtype=torch.long)
    previous: Tensor | None = None
    for count in range(1, len(item.clicks)):
        prompt = Prompt(clicks=pack_clicks([item.clicks[:count]]), previous=previous)
        previous = step.show(rgb, features, owner, prompt)
    prompt = Prompt(clicks=pack_clicks([item.clicks]), previous=previous)
    decoded = step.proposal(step.proposal.project(rgb, features), prompt)
    masks = decoded.logits.float().sigmoid()
    truth = torch.from_numpy(item.mask)[None, None].float()
    iou = hard_iou(F.adaptive_avg_pool2d(truth, masks.shape[-2:]), masks)[0]
    # The heads may have changed places since: what says the contrary now is left out.
    chosen = int(iou.argmax())
    rejected = tuple(
        head for head in item.rejected if head < len(iou) and float(iou[head]) < float(iou[chosen])
    )
    return _Choice(
        rgb=rgb,
        prompt=prompt,
        masks=masks,
        features=tuple(part.float() for part in decoded.features),
        iou=iou,
        chosen=chosen,
        rejected=rejected,
    )


def _train(step: TrainingStep, seen: Sequence[_Choice], *, rate: float, seed: int) -> None:
    selection = step.selection
    if selection is None:
        return
    selection.requires_grad_(True)
    optimizer = torch.optim.AdamW(selection.parameters(), lr=rate, weight_decay=0.0)
    rng = np.random.default_rng(seed)
    batch = 8
    for _ in range(EPOCHS):
        order = rng.permutation(len(seen)).tolist()
        for first in range(0, len(order), batch):
            for index in order[first : first + batch]:
                item = seen[index]
                rated = selection(item.rgb, item.prompt, item.masks, item.features).float()
                loss = selection.loss(rated, item.iou[None])
                loss = loss + PAIRS * pair_loss(rated[0], item.chosen, item.rejected)
                (loss / batch).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    selection.requires_grad_(False)
