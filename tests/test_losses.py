"""Eq. 2 to 7 against loops in numpy that are written from the paper's formulas."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from lidiv_backend import losses

Array = NDArray[np.float64]


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Truth, logits, clicked pixels and valid pixels of 3 examples with 4 masks of 5 x 7."""
    generator = torch.Generator().manual_seed(0)
    truth = (torch.rand(3, 1, 5, 7, generator=generator) > 0.5).float()
    logits = 3 * torch.randn(3, 4, 5, 7, generator=generator)
    clicked = (torch.rand(3, 2, 5, 7, generator=generator) > 0.9).float()
    clicked[:, 0] *= truth[:, 0]
    clicked[:, 1] *= 1 - truth[:, 0]
    valid = (torch.rand(3, 1, 5, 7, generator=generator) > 0.2).float()
    return truth, logits, clicked, valid


def literal(
    loss: Callable[[Array, Array, Array], float], truth: Tensor, masks: Tensor, valid: Tensor | None
) -> Array:
    """Apply a loss of one truth, one mask and its valid pixels to every mask of every example."""
    counted = torch.ones_like(truth) if valid is None else valid
    table = np.zeros(masks.shape[:2])
    for i, m in itertools.product(range(masks.shape[0]), range(masks.shape[1])):
        table[i, m] = loss(
            truth[i, 0].double().numpy(), masks[i, m].double().numpy(), counted[i, 0].numpy()
        )
    return table


def literal_jaccard(a: Array, b: Array, valid: Array) -> float:
    """Eq. 3."""
    lower = upper = 0.0
    for row, column in itertools.product(range(a.shape[0]), range(a.shape[1])):
        if valid[row, column]:
            lower += min(a[row, column], b[row, column])
            upper += max(a[row, column], b[row, column])
    return 1 - lower / upper


def literal_click_loss(positive: Array, negative: Array, b: Array) -> float:
    """Eq. 4, as it is printed: two L1 norms of Hadamard products."""
    return float(
        np.abs(positive * (positive - b)).sum() + np.abs(negative * (negative - (1 - b))).sum()
    )


def literal_f_terms(truth: Tensor, masks: Tensor, clicked: Tensor) -> tuple[Array, Array]:
    """l and l_c of every mask."""
    clicks = np.zeros(masks.shape[:2])
    for i, m in itertools.product(range(masks.shape[0]), range(masks.shape[1])):
        positive, negative = clicked[i].double().numpy()
        clicks[i, m] = literal_click_loss(positive, negative, masks[i, m].double().numpy())
    return literal(literal_jaccard, truth, masks, None), clicks


with_and_without_valid = pytest.mark.parametrize("use_valid", [False, True])


class TestJaccard:
    @with_and_without_valid
    def test_equals_eq_3(self, batch: tuple[Tensor, ...], use_valid: bool) -> None:
        truth, logits, _, valid = batch
        masks = logits.sigmoid()
        counted = valid if use_valid else None
        np.testing.assert_allclose(
            losses.jaccard_loss(truth, masks, counted).numpy(),
            literal(literal_jaccard, truth, masks, counted),
            atol=1e-6,
        )

    def test_is_the_jaccard_distance_of_hard_masks(self) -> None:
        truth = torch.tensor([[[[1.0, 1, 0, 0]]]])
        masks = torch.tensor([[[[1.0, 1, 0, 0]], [[0, 1, 1, 0]], [[0, 0, 1, 1]]]])
        assert losses.jaccard_loss(truth, masks).tolist() == [[0, pytest.approx(2 / 3), 1]]

    def test_two_empty_masks_give_a_number(self) -> None:
        empty = torch.zeros(1, 1, 3, 3)
        assert losses.jaccard_loss(empty, empty).isfinite().all()


class TestClicks:
    def test_equals_eq_4(self, batch: tuple[Tensor, ...]) -> None:
        truth, logits, clicked, _ = batch
        masks = logits.sigmoid()
        _, expected = literal_f_terms(truth, masks, clicked)
        np.testing.assert_allclose(losses.click_loss(clicked, masks).numpy(), expected, atol=1e-5)

    def test_looks_at_the_clicked_pixels_only(self, batch: tuple[Tensor, ...]) -> None:
        _, logits, clicked, _ = batch
        masks = logits.sigmoid().requires_grad_()
        losses.click_loss(clicked, masks).sum().backward()
        assert masks.grad is not None
        anywhere = clicked.sum(1, keepdim=True) > 0
        assert ((masks.grad != 0) == anywhere.expand_as(masks)).all()

    def test_without_clicks_nothing_is_lost(self) -> None:
        assert (losses.click_loss(torch.zeros(1, 2, 3, 3), torch.rand(1, 4, 3, 3)) == 0).all()


class TestProposal:
    def test_eq_2_is_the_mean_of_the_smallest(self) -> None:
        table = torch.tensor([[3.0, 1, 2], [5, 6, 4]])
        assert losses.hindsight_loss(table) == 2.5

    def test_equals_eq_5(self, batch: tuple[Tensor, ...]) -> None:
        truth, logits, clicked, _ = batch
        masks = logits.sigmoid()
        jaccard, clicks = literal_f_terms(truth, masks, clicked)
        expected = np.mean([min(row) for row in jaccard + clicks])
        assert losses.proposal_loss(truth, masks, clicked).item() == pytest.approx(
            expected, abs=1e-5
        )

    def test_the_click_term_is_inside_the_minimum(self) -> None:
        # Mask 0 has the smaller Jaccard distance but misses the click; mask 1 obeys it.
        truth = torch.tensor([[[[1.0, 1, 1, 0, 0, 0]]]])
        masks = torch.tensor([[[[0.0, 1, 1, 0, 0, 0]], [[1, 1, 1, 1, 1, 0]]]])
        clicked = torch.tensor([[[[1.0, 0, 0, 0, 0, 0]], [[0, 0, 0, 0, 0, 0]]]])
        inside = min(1 / 3 + 1, 2 / 5 + 0)
        outside = {min(1 / 3, 2 / 5) + term for term in (0, 1, 0.5)}
        assert losses.proposal_loss(truth, masks, clicked).item() == pytest.approx(inside)
        assert all(abs(inside - other) > 0.05 for other in outside)

    def test_only_the_best_mask_is_taught(self, batch: tuple[Tensor, ...]) -> None:
        truth, logits, clicked, _ = batch
        masks = logits.sigmoid()
        jaccard, clicks = literal_f_terms(truth, masks, clicked)
        logits.requires_grad_()
        losses.proposal_loss(truth, logits.sigmoid(), clicked).backward()
        assert logits.grad is not None
        taught = logits.grad.abs().sum((-2, -1)) > 0
        best = torch.from_numpy((jaccard + clicks).argmin(1))
        assert torch.equal(taught, torch.nn.functional.one_hot(best, 4).bool())


class TestRankedDiversity:
    @pytest.mark.parametrize("heads", [1, 2, 6, 8])
    def test_the_weights_are_the_papers(self, heads: int) -> None:
        expected = [10**-2 * 2 ** (heads - m) for m in range(1, heads + 1)]
        assert losses.ranked_diversity_weights(heads).tolist() == pytest.approx(expected)

    def test_equals_eq_7(self, batch: tuple[Tensor, ...]) -> None:
        truth, logits, clicked, _ = batch
        masks = logits.sigmoid()
        jaccard, clicks = literal_f_terms(truth, masks, clicked)
        expected = 0.0
        for i in range(3):
            expected += min(jaccard[i] + clicks[i])
            for m in range(1, 5):
                expected += 10**-2 * 2 ** (4 - m) * jaccard[i, m - 1]
        found = losses.ranked_diversity_loss(truth, masks, clicked).item()
        assert found == pytest.approx(expected / 3, abs=1e-5)


class TestSelection:
    def test_equals_eq_6(self) -> None:
        rng = np.random.default_rng(0)
        scores, jaccard = rng.normal(size=(5, 4)), rng.random((5, 4))
        expected = 0.0
        for i in range(5):
            best = min(range(4), key=lambda m, i=i: jaccard[i, m])
            expected += -scores[i, best] + math.log(sum(math.exp(score) for score in scores[i]))
        found = losses.selection_loss(torch.from_numpy(scores), torch.from_numpy(jaccard))
        assert found.item() == pytest.approx(expected / 5)

    def test_large_scores_do_not_overflow(self) -> None:
        scores = torch.tensor([[1000.0, -1000.0]], requires_grad=True)
        loss = losses.selection_loss(scores, torch.tensor([[1.0, 0.0]]))
        loss.backward()
        assert loss.item() == pytest.approx(2000)
        assert scores.grad is not None
        assert scores.grad.isfinite().all()

    def test_the_best_expected_iou_is_the_mean_iou(self) -> None:
        # Two masks that look alike to g and have IoU 0.2 and 0.8: the loss is least at 0.5.
        iou = torch.tensor([[0.2, 0.8]])
        logits = torch.linspace(-3, 3, 601)
        values = [losses.expected_iou_loss(logit.expand(1, 2), iou).item() for logit in logits]
        assert logits[int(np.argmin(values))].sigmoid().item() == pytest.approx(0.5, abs=0.01)


class TestOtherTerms:
    @with_and_without_valid
    def test_cross_entropy(self, batch: tuple[Tensor, ...], use_valid: bool) -> None:
        truth, logits, _, valid = batch
        masks, counted = logits.sigmoid(), valid if use_valid else None

        def entropy(a: Array, b: Array, valid: Array) -> float:
            each = [
                -math.log(q if p else 1 - q)
                for p, q, v in zip(a.flat, b.flat, valid.flat, strict=True)
                if v
            ]
            return sum(each) / len(each)

        found = losses.cross_entropy(truth, masks, counted).numpy()
        np.testing.assert_allclose(found, literal(entropy, truth, masks, counted), atol=1e-5)

    @with_and_without_valid
    def test_absolute_difference(self, batch: tuple[Tensor, ...], use_valid: bool) -> None:
        truth, logits, _, valid = batch
        masks, counted = logits.sigmoid(), valid if use_valid else None

        def difference(a: Array, b: Array, valid: Array) -> float:
            each = [abs(p - q) for p, q, v in zip(a.flat, b.flat, valid.flat, strict=True) if v]
            return sum(each) / len(each)

        found = losses.absolute_difference(truth, masks, counted).numpy()
        np.testing.assert_allclose(found, literal(difference, truth, masks, counted), atol=1e-6)

    @with_and_without_valid
    def test_normalised_focal(self, batch: tuple[Tensor, ...], use_valid: bool) -> None:
        truth, logits, _, valid = batch
        counted = valid if use_valid else None

        def focal(a: Array, b: Array, valid: Array) -> float:
            total = weights = 0.0
            for p, logit, v in zip(a.flat, b.flat, valid.flat, strict=True):
                right = 1 / (1 + math.exp(-logit if p else logit))
                if v:
                    total += (1 - right) ** 2 * -math.log(right)
                    weights += (1 - right) ** 2
            return total / weights

        found = losses.normalised_focal_loss(truth, logits, counted).numpy()
        np.testing.assert_allclose(found, literal(focal, truth, logits, counted), atol=1e-5)

    @with_and_without_valid
    def test_hard_iou(self, batch: tuple[Tensor, ...], use_valid: bool) -> None:
        truth, logits, _, valid = batch
        masks, counted = logits.sigmoid(), valid if use_valid else None

        def iou(a: Array, b: Array, valid: Array) -> float:
            wanted = {i for i, (p, v) in enumerate(zip(a.flat, valid.flat, strict=True)) if v and p}
            found = {
                i for i, (q, v) in enumerate(zip(b.flat, valid.flat, strict=True)) if v and q > 0.5
            }
            return len(wanted & found) / len(wanted | found)

        found = losses.hard_iou(truth, masks, counted).numpy()
        np.testing.assert_allclose(found, literal(iou, truth, masks, counted), atol=1e-6)

    def test_two_empty_masks_agree(self) -> None:
        assert losses.hard_iou(torch.zeros(1, 1, 2, 2), torch.zeros(1, 3, 2, 2)).tolist() == [
            [1, 1, 1]
        ]


@pytest.mark.parametrize("size", [1.0, 20.0, 200.0])
@pytest.mark.parametrize("target", ["empty", "full", "mixed"])
def test_gradients_are_finite_however_sure_the_masks_are(size: float, target: str) -> None:
    truth = {"empty": torch.zeros, "full": torch.ones}.get(target, torch.zeros)(1, 1, 4, 4)
    if target == "mixed":
        truth[..., :2, :] = 1
    clicked = torch.zeros(1, 2, 4, 4)
    clicked[0, 0, 0, 0] = clicked[0, 1, 3, 3] = 1
    valid = torch.ones_like(truth)
    for counted in (None, valid, torch.zeros_like(valid)):
        logits = (size * torch.linspace(-1, 1, 32).view(1, 2, 4, 4)).requires_grad_()
        masks = logits.sigmoid()
        total = (
            losses.proposal_loss(truth, masks, clicked, counted)
            + losses.ranked_diversity_loss(truth, masks, clicked, counted)
            + losses.cross_entropy(truth, masks, counted).sum()
            + losses.absolute_difference(truth, masks, counted).sum()
            + losses.normalised_focal_loss(truth, logits, counted).sum()
        )
        total.backward()
        assert total.isfinite()
        assert logits.grad is not None
        assert logits.grad.isfinite().all()
