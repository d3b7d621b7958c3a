"""One step of training: what is minimised, and what is reported of it."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from lidiv_backend.clicks import Click, click_maps, pack_clicks
from lidiv_backend.losses import (
    jaccard_loss,
    proposal_loss,
    ranked_diversity_loss,
    selection_loss,
)
from lidiv_backend.networks.encoders import build_encoder
from lidiv_backend.networks.prompt import Prompt
from lidiv_backend.training.config import LossConfig
from lidiv_backend.training.step import Outcome, TrainingStep, proposal_objective
from tests import tiny

CLICKS = [Click(x=12, y=9), Click(x=3, y=20, positive=False)]


def batch(*, size: int = 32) -> tuple[Tensor, Tensor, Prompt, Tensor, Tensor]:
    """Images, their owners, the prompt, truth and valid pixels: 2 images, 3 examples."""
    generator = torch.Generator().manual_seed(0)
    rgb = torch.rand(2, 3, size, size, generator=generator)
    truth = torch.zeros(3, 1, size, size)
    truth[0, :, 4:20, 6:22] = truth[1, :, 8:30, 2:18] = truth[2, :, 2:12, 10:30] = 1
    valid = torch.ones_like(truth)
    valid[1, :, :, 28:] = 0
    prompt = Prompt(clicks=pack_clicks([CLICKS, CLICKS[:1], CLICKS]))
    return rgb, torch.tensor([0, 0, 1]), prompt, truth, valid


def step_of(
    *, pyramid: bool = False, ranked: bool = False, train_proposal: bool = True, **loss: object
) -> TrainingStep:
    made = tiny.model(tiny.description(pyramid=pyramid, ranked=ranked))
    step = TrainingStep(
        made.proposal.requires_grad_(train_proposal),
        None if made.selection is None else made.selection.requires_grad_(True),
        loss=LossConfig(**loss),  # type: ignore[arg-type]
        train_proposal=train_proposal,
    )
    return step.train()


class TestObjective:
    @pytest.fixture
    def terms(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        _, _, prompt, truth, valid = batch()
        logits = torch.randn(3, 4, 32, 32, generator=torch.Generator().manual_seed(1))
        return truth, logits, click_maps(prompt.clicks, (32, 32)), valid

    def test_is_eq_5_as_the_paper_has_it(self, terms: tuple[Tensor, ...]) -> None:
        truth, logits, clicked, valid = terms
        found = proposal_objective(truth, logits, clicked, valid, LossConfig())
        torch.testing.assert_close(found, proposal_loss(truth, logits.sigmoid(), clicked, valid))

    def test_is_eq_7_when_ranked(self, terms: tuple[Tensor, ...]) -> None:
        truth, logits, clicked, valid = terms
        found = proposal_objective(truth, logits, clicked, valid, LossConfig(ranked=True))
        expected = ranked_diversity_loss(truth, logits.sigmoid(), clicked, valid)
        torch.testing.assert_close(found, expected)

    def test_without_soft_constraints_the_clicks_do_not_matter(
        self, terms: tuple[Tensor, ...]
    ) -> None:
        truth, logits, clicked, valid = terms
        plain = LossConfig(clicks=0.0)
        first = proposal_objective(truth, logits, clicked, valid, plain)
        assert first == proposal_objective(truth, logits, torch.zeros_like(clicked), valid, plain)
        assert first != proposal_objective(truth, logits, clicked, valid, LossConfig())

    def test_relaxation_teaches_every_head_a_little(self, terms: tuple[Tensor, ...]) -> None:
        truth, logits, clicked, valid = terms
        jaccard = jaccard_loss(truth, logits.sigmoid(), valid)
        found = proposal_objective(
            truth, logits, clicked, valid, LossConfig(clicks=0.0, relaxation=0.2)
        )
        expected = 0.8 * jaccard.min(1).values.mean() + 0.2 * jaccard.mean()
        torch.testing.assert_close(found, expected)

    @pytest.mark.parametrize(
        "loss",
        [
            LossConfig(),
            LossConfig(task="cross_entropy"),
            LossConfig(task="l1"),
            LossConfig(clicks=0.0),
            LossConfig(ranked=True),
            LossConfig(focal=1.0, clicks=0.1, relaxation=0.05),
        ],
    )
    def test_every_variant_of_table_3_can_be_minimised(
        self, terms: tuple[Tensor, ...], loss: LossConfig
    ) -> None:
        truth, logits, clicked, valid = terms
        logits = logits.clone().requires_grad_()
        optimizer = torch.optim.Adam([logits], lr=0.3)
        losses = []
        for _ in range(20):
            value = proposal_objective(truth, logits, clicked, valid, loss)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            losses.append(value.item())
        assert losses[-1] < 0.5 * losses[0]


class _Reveal(nn.Module):
    """A g that rates each mask by its mean, so that its order can be told."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.seen: list[Tensor] = []

    def forward(self, rgb: Tensor, prompt: Prompt, masks: Tensor, features: object) -> Tensor:
        self.seen.append(masks)
        return self.scale * masks.mean((-2, -1))

    def loss(self, rated: Tensor, iou: Tensor) -> Tensor:
        self.rated, self.iou = rated.detach(), iou
        return selection_loss(rated, 1 - iou)


class TestSelection:
    @pytest.mark.parametrize("training", [True, False])
    def test_g_rates_the_masks_in_the_order_of_the_heads(self, training: bool) -> None:
        # Which head is right most often is the first thing that g can learn.
        step = step_of().train(training)
        reveal = _Reveal()
        step.selection = reveal  # type: ignore[assignment]
        state = torch.get_rng_state()
        outcome: Outcome = step(*_arguments())
        assert torch.equal(reveal.seen[0], outcome.masks)
        assert torch.equal(reveal.iou, outcome.iou)
        assert outcome.rated is not None
        torch.testing.assert_close(outcome.rated, outcome.masks.mean((-2, -1)))
        assert torch.equal(outcome.selected, outcome.masks.mean((-2, -1)).argmax(1))
        assert torch.equal(torch.get_rng_state(), state)

    def test_shuffled_g_sees_each_example_in_an_order_of_its_own(self) -> None:
        step = step_of()
        step.shuffle = True
        reveal = _Reveal()
        step.selection = reveal  # type: ignore[assignment]
        orders = set()
        for _ in range(8):
            outcome: Outcome = step(*_arguments())
            seen = reveal.seen[-1]
            same = (seen[:, :, None] - outcome.masks[:, None]).abs().amax((-2, -1)) == 0
            assert (same.sum(1) == 1).all()
            assert (same.sum(2) == 1).all()
            places = same.float().argmax(2)
            orders |= {tuple(row) for row in places.tolist()}
            # The loss compares like with like, and what is reported is in the heads' order.
            torch.testing.assert_close(reveal.iou, outcome.iou.gather(1, places))
            torch.testing.assert_close(reveal.rated, seen.mean((-2, -1)))
            assert outcome.rated is not None
            torch.testing.assert_close(outcome.rated, outcome.masks.mean((-2, -1)))
        assert len(orders) > 8
        step.eval()
        outcome = step(*_arguments())
        assert torch.equal(reveal.seen[-1], outcome.masks)


def _arguments() -> tuple[Tensor, tuple[Tensor, ...], Tensor, Prompt, Tensor, Tensor]:
    rgb, owner, prompt, truth, valid = batch()
    return rgb, (), owner, prompt, truth, valid


class TestForward:
    def test_each_example_is_of_its_image(self) -> None:
        step = step_of(ranked=True)
        rgb, owner, prompt, truth, valid = batch()
        outcome = step(rgb, (), owner, prompt, truth, valid)
        for index in range(3):
            alone = step(
                rgb[owner[index]][None],
                (),
                torch.tensor([0]),
                Prompt(clicks=prompt.clicks[index : index + 1]),
                truth[index : index + 1],
                valid[index : index + 1],
            )
            torch.testing.assert_close(
                alone.masks, outcome.masks[index : index + 1], rtol=1e-4, atol=1e-5
            )

    def test_gradients_keep_the_channels_last(self) -> None:
        """The other order makes the layers before several times as slow backwards."""
        step = step_of()
        project = step.proposal.project
        kept: list[bool] = []

        def watched(rgb: Tensor, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            parts = project(rgb, features)
            for part in parts:
                part.register_hook(
                    lambda grad: kept.append(grad.is_contiguous(memory_format=torch.channels_last))
                )
            return parts

        step.proposal.project = watched  # type: ignore[method-assign]
        rgb, owner, prompt, truth, valid = batch()
        rgb = rgb.contiguous(memory_format=torch.channels_last)
        step.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        step(rgb, (), owner, prompt, truth, valid).loss.backward()
        assert kept == [True]

    def test_the_iou_is_that_of_the_hard_masks(self) -> None:
        step = step_of()
        rgb, owner, prompt, truth, valid = batch()
        outcome = step(rgb, (), owner, prompt, truth, valid)
        for i, m in itertools.product(range(3), range(4)):
            counted = valid[i, 0].numpy() > 0
            wanted = (truth[i, 0].numpy() > 0) & counted
            found = (outcome.masks[i, m].numpy() > 0.5) & counted
            expected = (wanted & found).sum() / (wanted | found).sum()
            assert outcome.iou[i, m].item() == pytest.approx(expected)

    def test_without_g_the_first_is_shown(self) -> None:
        step = step_of(ranked=True)
        outcome = step(*_arguments())
        assert outcome.rated is None
        assert outcome.selected.tolist() == [0, 0, 0]

    def test_in_gs_phase_f_stays_as_it_is(self) -> None:
        step = step_of(train_proposal=False)
        outcome = step(*_arguments())
        outcome.loss.backward()
        assert all(parameter.grad is None for parameter in step.proposal.parameters())
        assert step.selection is not None
        assert all(parameter.grad is not None for parameter in step.selection.parameters())

    def test_fs_gradient_does_not_come_from_g(self) -> None:
        with_g, without_g = step_of(), step_of(ranked=True)
        without_g.proposal.load_state_dict(with_g.proposal.state_dict())
        for step in (with_g, without_g):
            step(*_arguments()).loss.backward()
        for first, second in zip(
            with_g.proposal.parameters(), without_g.proposal.parameters(), strict=True
        ):
            torch.testing.assert_close(first.grad, second.grad, rtol=1e-4, atol=1e-6)

    def test_a_strided_network_is_taught_clear_cells_only(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: dict[str, Tensor] = {}

        def spy(
            truth: Tensor, logits: Tensor, clicked: Tensor, valid: Tensor, config: LossConfig
        ) -> Tensor:
            seen.update(truth=truth, clicked=clicked, valid=valid)
            return logits.sum() * 0

        monkeypatch.setattr("lidiv_backend.training.step.proposal_objective", spy)
        step = step_of(pyramid=True)
        encoder = build_encoder("mobilesam", pretrained=False)
        rgb, owner, prompt, truth, valid = batch()
        truth = torch.zeros_like(truth)
        truth[:, :, 5:17, 4:18] = 1  # cells of 2 x 2: rows 2 and 8 are half covered
        outcome = step(rgb, encoder(rgb), owner, prompt, truth, valid)
        assert outcome.masks.shape == (3, 4, 16, 16)
        cells = truth.numpy().reshape(3, 16, 2, 16, 2).mean((2, 4))
        clear = (cells == 0) | (cells == 1)
        assert not clear.all()
        everything = valid.numpy().reshape(3, 16, 2, 16, 2).min((2, 4)) == 1
        assert ((seen["valid"][:, 0].numpy() > 0) == (clear & everything)).all()
        assert (seen["truth"][:, 0].numpy()[clear] == cells[clear]).all()
        # Clicks are single cells, however large the network's disks are.
        assert seen["clicked"].sum((-2, -1)).tolist() == [[1, 1], [1, 0], [1, 1]]


class TestShow:
    @pytest.mark.parametrize("ranked", [False, True])
    def test_is_the_mask_that_would_be_selected(self, ranked: bool) -> None:
        step = step_of(ranked=ranked).eval()
        rgb, owner, prompt, truth, valid = batch()
        shown = step.show(rgb, (), owner, prompt)
        outcome = step(rgb, (), owner, prompt, truth, valid)
        for index, head in enumerate(outcome.selected.tolist()):
            torch.testing.assert_close(shown[index, 0], outcome.masks[index, head])
        assert not shown.requires_grad

    def test_without_g_the_best_stands_for_the_selected(self) -> None:
        step = step_of(ranked=True).eval()
        assert step.selection is None
        rgb, owner, prompt, truth, valid = batch()
        outcome = step(rgb, (), owner, prompt, truth, valid)
        best = outcome.iou.argmax(1).tolist()
        assert any(best)
        shown = step.show(rgb, (), owner, prompt, truth, valid)
        for index, head in enumerate(best):
            torch.testing.assert_close(shown[index, 0], outcome.masks[index, head])
        # Unless f ranks them itself.
        step.loss = LossConfig(ranked=True)
        shown = step.show(rgb, (), owner, prompt, truth, valid)
        torch.testing.assert_close(shown[:, 0], outcome.masks[:, 0])

    @pytest.mark.parametrize("ranked", [False, True])
    def test_may_be_made_of_cells_while_every_pixel_is_learnt(self, ranked: bool) -> None:
        step, coarse = step_of(ranked=ranked).eval(), step_of(ranked=ranked).eval()
        for network in (coarse.proposal, coarse.selection):
            if network is not None:
                network.coarsen(4)  # type: ignore[operator]
        if step.selection is not None:
            step.selection.coarsen(4)  # type: ignore[operator]
        rgb, owner, prompt, truth, valid = batch()
        before = step(rgb, (), owner, prompt, truth, valid)
        step.click_grid = 4
        shown = step.show(rgb, (), owner, prompt, truth, valid)
        assert shown.shape == (3, 1, 8, 8)
        expected = coarse.show(rgb, (), owner, prompt, truth, valid)
        torch.testing.assert_close(shown, expected, rtol=0, atol=0)
        after = step(rgb, (), owner, prompt, truth, valid)
        torch.testing.assert_close(after.masks, before.masks, rtol=0, atol=0)
        # Cells that are larger already stay.
        coarse.click_grid = 2
        shown = coarse.show(rgb, (), owner, prompt, truth, valid)
        torch.testing.assert_close(shown, expected, rtol=0, atol=0)
        # Nor does a failure leave the network on them.
        with pytest.raises(ValueError, match="zip"):
            step.show(rgb, (rgb,), owner, prompt)
        assert step.proposal.output_stride == 1
