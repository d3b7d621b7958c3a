"""The losses of the paper, Eq. 2 to 7, and the terms that later work added inside the minimum.

Shapes throughout: ``truth`` is (B, 1, H, W) of 0 and 1, ``masks`` is (B, M, H, W) in [0, 1],
``valid`` is (B, 1, H, W) of 0 and 1 or None (all pixels count), per-mask losses are (B, M).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

_EPSILON = 1e-6


def jaccard_loss(truth: Tensor, masks: Tensor, valid: Tensor | None = None) -> Tensor:
    """Relaxed Jaccard distance of each mask (Eq. 3).

    Returns
    -------
    Tensor
        (B, M), 1 - sum of min(A, B) / sum of max(A, B) over the pixels.
    """
    lower, upper = torch.minimum(truth, masks), torch.maximum(truth, masks)
    if valid is not None:
        lower, upper = lower * valid, upper * valid
    return 1 - lower.sum((-2, -1)) / upper.sum((-2, -1)).clamp_min(_EPSILON)


def click_loss(clicked: Tensor, masks: Tensor) -> Tensor:
    """How much each mask contradicts the clicks (Eq. 4), at the clicked pixels only.

    Parameters
    ----------
    clicked
        (B, 2, H, W) of 0 and 1: exactly the clicked pixels, S_p and S_n, also where the network
        sees clicks as disks.

    Returns
    -------
    Tensor
        (B, M), the summed deviation from 1 at positive and from 0 at negative clicks.
    """
    positive, negative = clicked[:, :1], clicked[:, 1:]
    return (positive * (1 - masks) + negative * masks).sum((-2, -1))


def hindsight_loss(per_mask: Tensor) -> Tensor:
    """The best of the M counts (Eq. 2, and Eq. 5 where the click term was added before).

    Parameters
    ----------
    per_mask
        (B, M).

    Returns
    -------
    Tensor
        Scalar, the mean over the batch.
    """
    return per_mask.amin(1).mean()


def proposal_loss(
    truth: Tensor, masks: Tensor, clicked: Tensor, valid: Tensor | None = None
) -> Tensor:
    """L_f (Eq. 5): the click term is inside the minimum.

    Returns
    -------
    Tensor
        Scalar, the mean over the batch.
    """
    return hindsight_loss(jaccard_loss(truth, masks, valid) + click_loss(clicked, masks))


def ranked_diversity_weights(heads: int) -> Tensor:
    """lambda_m = 10^-2 * 2^(M - m) for m = 1..M, as (M,), decreasing."""
    return 0.01 * 2.0 ** torch.arange(heads - 1, -1, -1, dtype=torch.float32)


def ranking_term(per_mask: Tensor) -> Tensor:
    """The second sum of Eq. 7: losses (B, M) weighted by lambda_m, the mean over the batch."""
    weights = ranked_diversity_weights(per_mask.shape[1]).to(per_mask)
    return (per_mask * weights).sum(1).mean()


def ranked_diversity_loss(
    truth: Tensor, masks: Tensor, clicked: Tensor, valid: Tensor | None = None
) -> Tensor:
    """L_f^RDL (Eq. 7), which makes f rank its own outputs.

    Returns
    -------
    Tensor
        Scalar, the mean over the batch.
    """
    jaccard = jaccard_loss(truth, masks, valid)
    return hindsight_loss(jaccard + click_loss(clicked, masks)) + ranking_term(jaccard)


def selection_loss(scores: Tensor, jaccard: Tensor) -> Tensor:
    """L_g (Eq. 6): cross-entropy with the mask of the smallest Jaccard distance.

    Parameters
    ----------
    scores
        (B, M), g's outputs before the softmax.
    jaccard
        (B, M), Jaccard distance of each mask to the truth.
    """
    return F.cross_entropy(scores, jaccard.argmin(1))


def expected_iou_loss(scores: Tensor, iou: Tensor) -> Tensor:
    """Binary cross-entropy of the expected against the real IoU of every mask.

    Its minimum is at the expected IoU, so the score is calibrated (SAM 2 supervises every mask
    likewise).

    Parameters
    ----------
    scores
        (B, M), g's outputs before the sigmoid.
    iou
        (B, M) in [0, 1].
    """
    return F.binary_cross_entropy_with_logits(scores, iou)


def cross_entropy(truth: Tensor, masks: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean binary cross-entropy of each mask, (B, M): the replacement in Table 3."""
    masks = masks.clamp(_EPSILON, 1 - _EPSILON)
    per_pixel = -(truth * masks.log() + (1 - truth) * (1 - masks).log())
    return _mean_over_pixels(per_pixel, valid)


def absolute_difference(truth: Tensor, masks: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean absolute difference (L1) of each mask, (B, M): the replacement in Table 3."""
    return _mean_over_pixels((truth - masks).abs(), valid)


def normalised_focal_loss(
    truth: Tensor, logits: Tensor, valid: Tensor | None = None, *, gamma: float = 2.0
) -> Tensor:
    """Focal loss of each mask whose weights are normalised to a mean of one (RITM).

    Parameters
    ----------
    logits
        (B, M, H, W), the masks before the sigmoid.
    gamma
        How much the easy pixels are discounted.

    Returns
    -------
    Tensor
        (B, M).
    """
    entropy = F.binary_cross_entropy_with_logits(logits, truth.expand_as(logits), reduction="none")
    weight = (1 - torch.exp(-entropy.detach())) ** gamma
    if valid is not None:
        entropy, weight = entropy * valid, weight * valid
    return (weight * entropy).sum((-2, -1)) / weight.sum((-2, -1)).clamp_min(_EPSILON)


def _mean_over_pixels(per_pixel: Tensor, valid: Tensor | None) -> Tensor:
    if valid is None:
        return per_pixel.mean((-2, -1))
    return (per_pixel * valid).sum((-2, -1)) / valid.sum((-2, -1)).clamp_min(1)


def hard_iou(truth: Tensor, masks: Tensor, valid: Tensor | None = None) -> Tensor:
    """IoU of each mask thresholded at 1/2, (B, M); two empty masks agree."""
    wanted, found = truth > 0.5, masks > 0.5
    if valid is not None:
        counted = valid > 0.5
        wanted, found = wanted & counted, found & counted
    both = (wanted & found).sum((-2, -1)).float()
    either = (wanted | found).sum((-2, -1)).float()
    return torch.where(either > 0, both / either.clamp_min(1), torch.ones_like(both))
