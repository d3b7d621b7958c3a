"""What f and g minimise, in one module, so that several processes can share a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lidiv_backend.clicks import click_maps
from lidiv_backend.losses import (
    absolute_difference,
    click_loss,
    cross_entropy,
    hard_iou,
    hindsight_loss,
    jaccard_loss,
    normalised_focal_loss,
    ranking_term,
)
from lidiv_backend.model import build_networks
from lidiv_backend.networks.encoders import Encoder
from lidiv_backend.networks.prompt import Prompt
from lidiv_backend.networks.proposal import (
    Decoded,
    DosNetwork,
    HypercolumnNetwork,
    ProposalNetwork,
)
from lidiv_backend.networks.selection import CanSelection, SelectionNetwork
from lidiv_backend.training.config import LossConfig, TrainingConfig

_TASKS = {
    "jaccard": jaccard_loss,
    "cross_entropy": cross_entropy,
    "l1": absolute_difference,
}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a step found, each (B, M) unless said otherwise.

    Parameters
    ----------
    loss
        Scalar to minimise.
    iou
        IoU of each hard mask.
    rated
        What g gave, or None.
    masks
        (B, M, h, w) in [0, 1], without gradient.
    """

    loss: Tensor
    iou: Tensor
    rated: Tensor | None
    masks: Tensor

    @property
    def selected(self) -> Tensor:
        """(B,) index of the mask that would be shown."""
        return selected(self.masks, self.rated)


def selected(masks: Tensor, rated: Tensor | None) -> Tensor:
    """(B,) index of the mask that is shown: g's choice, else the first."""
    if rated is None:
        return torch.zeros(len(masks), dtype=torch.long, device=masks.device)
    return rated.argmax(1)


def networks_to_train(
    config: TrainingConfig, encoder: Callable[[str], Encoder]
) -> tuple[ProposalNetwork, SelectionNetwork | None]:
    """Build f and g with random weights, as a training begins with them.

    Parameters
    ----------
    config
        Architectures, and the grids on which they are trained.
    encoder
        Gives an encoder by its key in `ENCODERS`, for networks that begin with one's weights.
    """
    proposal, selection = build_networks(config.proposal, config.selection)
    if isinstance(proposal, DosNetwork):
        proposal.begin_with(encoder(DosNetwork.begins_with))
    if isinstance(proposal, HypercolumnNetwork) and config.grid > 1:
        proposal.coarsen(config.grid)
    if isinstance(selection, CanSelection):
        selection.coarsen(config.selection_grid)
    return proposal, selection


def _of_examples(maps: Tensor, owner: Tensor) -> Tensor:
    """(B, C, h, w) from the (I, C, h, w) of images, with the channels last in memory.

    Without the permutations the gradient has them first, and what is before this in f is several
    times as slow backwards.
    """
    return maps.permute(0, 2, 3, 1)[owner].permute(0, 3, 1, 2)


def proposal_objective(
    truth: Tensor, logits: Tensor, clicked: Tensor, valid: Tensor, config: LossConfig
) -> Tensor:
    """Loss of f: Eq. 5 with its variants.

    Parameters
    ----------
    truth, valid
        (B, 1, H, W) of 0 and 1.
    logits
        (B, M, H, W).
    clicked
        (B, 2, H, W), exactly the clicked pixels.
    config
        Which terms.

    Returns
    -------
    Tensor
        Scalar.
    """
    masks = logits.sigmoid()
    task = _TASKS[config.task](truth, masks, valid)
    per_mask = task
    if config.focal:
        per_mask = per_mask + config.focal * normalised_focal_loss(truth, logits, valid)
    if config.clicks:
        per_mask = per_mask + config.clicks * click_loss(clicked, masks)
    loss = (1 - config.relaxation) * hindsight_loss(per_mask)
    if config.relaxation:
        loss = loss + config.relaxation * per_mask.mean()
    if config.ranked:
        loss = loss + ranking_term(task)
    return loss


class TrainingStep(nn.Module):
    """f and g with their losses.

    Parameters
    ----------
    proposal, selection
        f and g; without g only f is trained.
    loss
        What f minimises.
    train_proposal
        False in g's phase: f is frozen.
    click_grid
        Pixels for each cell of the masks that are only shown.
    shuffle
        Whether g is handed the masks in an order drawn for each example, while it is trained.
    """

    def __init__(
        self,
        proposal: ProposalNetwork,
        selection: SelectionNetwork | None,
        *,
        loss: LossConfig,
        train_proposal: bool = True,
        click_grid: int = 1,
        shuffle: bool = False,
    ) -> None:
        super().__init__()
        self.proposal = proposal
        self.selection = selection
        self.loss = loss
        self.train_proposal = train_proposal
        self.click_grid = click_grid
        self.shuffle = shuffle

    def forward(
        self,
        rgb: Tensor,
        features: Sequence[Tensor],
        owner: Tensor,
        prompt: Prompt,
        truth: Tensor,
        valid: Tensor,
    ) -> Outcome:
        """One forward pass of a batch.

        Parameters
        ----------
        rgb
            float (I, 3, H, W) in [0, 1].
        features
            Levels of the encoder for the I images.
        owner
            int64 (B,): which image each example is of.
        prompt
            Clicks and previous masks of the B examples.
        truth, valid
            float (B, 1, H, W) of 0 and 1.
        """
        decoded = self._propose(rgb, features, owner, prompt)
        return self._judge(rgb[owner], decoded, prompt, truth, valid)

    def _propose(
        self, rgb: Tensor, features: Sequence[Tensor], owner: Tensor, prompt: Prompt
    ) -> Decoded:
        with torch.set_grad_enabled(self.train_proposal and torch.is_grad_enabled()):
            projected = self.proposal.project(rgb, features)
            examples = [_of_examples(part, owner) for part in projected]
            decoded: Decoded = self.proposal(examples, prompt)
        return decoded

    @torch.no_grad()
    def show(
        self,
        rgb: Tensor,
        features: Sequence[Tensor],
        owner: Tensor,
        prompt: Prompt,
        truth: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> Tensor:
        """The masks that annotators would see, (B, 1, h, w) in [0, 1]; see `forward`.

        While there is no g, and f does not rank its masks itself, the best of them stands for what
        g will choose, if the truth is given: f is to learn what a click changes in a good mask.
        """
        with self._on_click_grid():
            decoded = self._propose(rgb, features, owner, prompt)
            masks = decoded.logits.float().sigmoid()
            rated = None
            if self.selection is not None:
                seen = [part.float() for part in decoded.features]
                rated = self.selection(rgb[owner], prompt, masks, seen)
            elif truth is not None and valid is not None and not self.loss.ranked:
                wanted, counted = self._in_cells(truth, valid)
                rated = hard_iou(wanted, masks, counted)
        return masks[torch.arange(len(masks)), selected(masks, rated)].unsqueeze(1)

    def _on_click_grid(self) -> AbstractContextManager[None]:
        if isinstance(self.proposal, HypercolumnNetwork):
            return self.proposal.at_least(self.click_grid)
        return nullcontext()

    def _in_cells(self, truth: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Truth and valid pixels on f's grid."""
        stride = self.proposal.output_stride
        if stride == 1:
            return truth, valid
        truth = nn.functional.avg_pool2d(truth, stride)
        valid = (nn.functional.avg_pool2d(valid, stride) > 0.99).float()
        # A pixel on the outline is neither: only clear ones are taught.
        valid = valid * ((truth < 0.25) | (truth > 0.75)).float()
        return (truth > 0.5).float(), valid

    def _judge(
        self, rgb: Tensor, decoded: Decoded, prompt: Prompt, truth: Tensor, valid: Tensor
    ) -> Outcome:
        truth, valid = self._in_cells(truth, valid)
        logits = decoded.logits.float()
        loss = logits.new_zeros(())
        if self.train_proposal:
            size = (logits.shape[-2], logits.shape[-1])
            clicked = click_maps(prompt.clicks, size, stride=self.proposal.output_stride)
            loss = proposal_objective(truth, logits, clicked, valid, self.loss)
        masks = logits.detach().sigmoid()
        iou = hard_iou(truth, masks, valid)
        rated = None
        if self.selection is not None:
            features = [part.detach().float() for part in decoded.features]
            order = self._order(iou)
            seen = masks.gather(1, order[..., None, None].expand_as(masks))
            answer = self.selection(rgb, prompt, seen, features).float()
            loss = loss + self.selection.loss(answer, iou.gather(1, order))
            rated = torch.empty_like(answer).scatter(1, order, answer).detach()
        return Outcome(loss=loss, iou=iou, rated=rated, masks=masks)

    def _order(self, iou: Tensor) -> Tensor:
        """(B, M) indices of the heads, in the order in which g is handed their masks."""
        if self.shuffle and self.training:
            return torch.rand(iou.shape).argsort(1).to(iou.device)
        return torch.arange(iou.shape[1], device=iou.device).expand(iou.shape)
