"""g: which of the M masks is meant."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from lidiv_backend.clicks import sampling_places
from lidiv_backend.errors import WeightsError
from lidiv_backend.losses import expected_iou_loss, selection_loss
from lidiv_backend.networks.prompt import Prompt, PromptChannels
from lidiv_backend.networks.proposal import ContextAggregation, PyramidNetwork


@dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    """Architecture of g.

    Parameters
    ----------
    architecture
        ``can`` (the paper's) or ``pooled``.
    heads
        M.
    clicks, distances
        Whether it sees the click maps and the distance transforms; ``can`` only.
    """

    architecture: str = "can"
    heads: int = 6
    clicks: bool = True
    distances: bool = True

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``model.json``."""
        return asdict(self)


class SelectionNetwork(nn.Module, abc.ABC):
    """g: one number for each mask."""

    #: Whether `score` is the IoU that is expected of a mask, rather than the mask's share of trust.
    expects_iou: bool = False

    def __init__(self, config: SelectionConfig) -> None:
        super().__init__()
        self.config = config

    @abc.abstractmethod
    def forward(
        self, rgb: Tensor, prompt: Prompt, masks: Tensor, features: Sequence[Tensor]
    ) -> Tensor:
        """Rate the masks.

        Parameters
        ----------
        rgb
            float (B, 3, H, W) in [0, 1].
        prompt
            The clicks.
        masks
            float (B, M, h, w) in [0, 1], f's output.
        features
            `Decoded.features` of f.

        Returns
        -------
        Tensor
            (B, M), before the softmax or sigmoid.
        """

    @abc.abstractmethod
    def score(self, rated: Tensor) -> Tensor:
        """The scores that are shown, in [0, 1], from what `forward` gave."""

    @abc.abstractmethod
    def loss(self, rated: Tensor, iou: Tensor) -> Tensor:
        """Training loss, from what `forward` gave and the masks' real IoU, both (B, M)."""


class CanSelection(SelectionNetwork):
    """The paper's g: Table 1 without layer 1, then global average pooling.

    It sees X, S_p, S_n, T_p, T_n and the M masks at full resolution: 7 + M channels, or less of
    them in the ablations.

    They are centred first, each distance map at its own mean, and the masks are given the largest
    scale. All layers begin near the identity and their outputs are averaged over the image, so what
    is constant in a channel would otherwise be most of what they are told.
    """

    #: Factors of the centred image, distance maps and masks.
    image_scale, distance_scale, mask_scale = 2.0, 4.0, 8.0

    def __init__(self, config: SelectionConfig) -> None:
        super().__init__(config)
        self.prompt = PromptChannels(clicks=config.clicks, distances=config.distances)
        self.body = ContextAggregation(3 + self.prompt.count + config.heads, config.heads)

    def coarsen(self, grid: int) -> None:
        """Train on the means of cells, as `HypercolumnNetwork.coarsen`; masks may be finer."""
        self.body.grid = grid

    def forward(
        self, rgb: Tensor, prompt: Prompt, masks: Tensor, features: Sequence[Tensor]
    ) -> Tensor:
        """See `SelectionNetwork.forward`."""
        grid = self.body.grid
        if grid > 1:
            rgb = F.avg_pool2d(rgb, grid)
            masks = _average(masks, rgb)
        size = (rgb.shape[-2], rgb.shape[-1])
        channels = self.prompt.draw_means(prompt, size, grid=grid)
        first = 2 * self.prompt.clicks
        clicks, distances = channels[:, :first], channels[:, first:]
        seen = [
            (rgb - 0.5) * self.image_scale,
            clicks,
            (distances - distances.mean((-2, -1), keepdim=True)) * self.distance_scale,
            (masks - 0.5) * self.mask_scale,
        ]
        rated: Tensor = self.body(torch.cat(seen, 1)).mean((-2, -1))
        return rated

    def score(self, rated: Tensor) -> Tensor:
        """Softmax over the M masks."""
        return rated.softmax(1)

    def loss(self, rated: Tensor, iou: Tensor) -> Tensor:
        """Eq. 6."""
        return selection_loss(rated, 1 - iou)


class PooledSelection(SelectionNetwork):
    """g on what f saw inside, around and along the outline of each mask.

    The same small network rates every mask, so the order of the masks cannot matter and nothing
    needs to be shuffled. Its output is the logit of the expected IoU.
    """

    expects_iou = True

    def __init__(self, config: SelectionConfig) -> None:
        super().__init__(config)
        coarse, _, fine, _ = PyramidNetwork._widths
        width = 128
        self.describe = nn.Sequential(
            nn.Linear(2 * coarse + 3 * fine + 12, width), nn.LayerNorm(width), nn.GELU()
        )
        self.compare = nn.Linear(2 * width, width)
        self.rate = nn.Sequential(
            nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1)
        )

    def forward(
        self, rgb: Tensor, prompt: Prompt, masks: Tensor, features: Sequence[Tensor]
    ) -> Tensor:
        """See `SelectionNetwork.forward`."""
        coarse, fine = features
        facts = self._facts(prompt, masks)
        small = _average(masks, fine)
        smallest = _average(masks, coarse)
        # The largest of rows of nine and then of columns: the same as of squares, in less time.
        rows = F.max_pool2d(small, (1, 9), stride=1, padding=(0, 4))
        around = F.max_pool2d(rows, (9, 1), stride=1, padding=(4, 0)) - small
        around_coarse = F.max_pool2d(smallest, 3, stride=1, padding=1) - smallest
        described = torch.cat(
            [
                _pool(coarse, smallest),
                _pool(coarse, around_coarse),
                _pool(fine, small),
                _pool(fine, around),
                _pool(fine, small * (1 - small)),
                facts,
            ],
            -1,
        )
        each: Tensor = self.describe(described)
        all_of_them = each.mean(1, keepdim=True).expand_as(each)
        rated: Tensor = self.rate(self.compare(torch.cat([each, all_of_them], -1)))
        return rated.squeeze(-1)

    @staticmethod
    def _facts(prompt: Prompt, masks: Tensor) -> Tensor:
        """Twelve numbers about each mask, (B, M, 12): size, sharpness, agreement."""
        masks = masks.float()
        area = masks.mean((-2, -1))
        hard = (masks > 0.5).float()
        lower, upper = torch.minimum(hard, masks), torch.maximum(hard, masks)
        sharpness = lower.sum((-2, -1)) / upper.sum((-2, -1)).clamp_min(1e-3)
        unsure = (masks * (1 - masks)).mean((-2, -1))
        common = (masks.mean(1, keepdim=True) * masks).sum((-2, -1)) / masks.sum(
            (-2, -1)
        ).clamp_min(1e-3)
        clicks = prompt.clicks
        size = masks.shape[-2], masks.shape[-1]
        places = sampling_places(clicks, size, stride=PyramidNetwork.output_stride).unsqueeze(1)
        at_clicks = F.grid_sample(masks, places, align_corners=False, padding_mode="border")
        at_clicks = at_clicks.squeeze(2)
        facts = [area, area.sqrt(), sharpness, unsure, common]
        for sign in (1.0, -1.0):
            wanted = (clicks[..., 2] == sign).unsqueeze(1).float()
            count = wanted.sum(-1)
            wrong = (1 - at_clicks) if sign > 0 else at_clicks
            facts.append((wrong * wanted).sum(-1) / count.clamp_min(1))
            facts.append((wrong * wanted).amax(-1))
            facts.append((count / 10).expand_as(area))
        if prompt.previous is None:
            facts.append(torch.zeros_like(area))
        else:
            previous = _average(prompt.previous.float(), masks)
            both = torch.minimum(previous, masks).sum((-2, -1))
            either = torch.maximum(previous, masks).sum((-2, -1))
            facts.append(both / either.clamp_min(1e-3))
        return torch.stack(facts, -1)

    def score(self, rated: Tensor) -> Tensor:
        """The expected IoU."""
        return rated.sigmoid()

    def loss(self, rated: Tensor, iou: Tensor) -> Tensor:
        """Binary cross-entropy with every mask's real IoU."""
        return expected_iou_loss(rated, iou)


def _average(masks: Tensor, like: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(masks, (like.shape[-2], like.shape[-1]))


def _pool(features: Tensor, weights: Tensor) -> Tensor:
    """Means of features (B, C, h, w) under weights (B, M, h, w), as (B, M, C)."""
    flat = weights.flatten(2)
    total = flat.sum(-1, keepdim=True).clamp_min(1e-3)
    return torch.einsum("bmn,bcn->bmc", flat / total, features.flatten(2))


ARCHITECTURES: dict[str, type[SelectionNetwork]] = {"can": CanSelection, "pooled": PooledSelection}


def build_selection_network(config: SelectionConfig) -> SelectionNetwork:
    """Build g with random weights.

    Raises
    ------
    WeightsError
        If the architecture is unknown.
    """
    try:
        return ARCHITECTURES[config.architecture](config)
    except KeyError:
        raise WeightsError(
            f"The architecture of g is '{config.architecture}', which is unknown.",
            remedy=f"Known are {', '.join(ARCHITECTURES)}; is the file of a newer version?",
        ) from None
