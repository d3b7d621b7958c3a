"""g: what it sees, what it may not care about, and what its score means."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lidiv_backend.clicks import Click, click_maps, distance_maps, pack_clicks
from lidiv_backend.errors import WeightsError
from lidiv_backend.networks.prompt import Prompt
from lidiv_backend.networks.selection import (
    ARCHITECTURES,
    CanSelection,
    PooledSelection,
    SelectionConfig,
    SelectionNetwork,
    build_selection_network,
)

CLICKS = pack_clicks([[Click(x=4, y=9), Click(x=20, y=3, positive=False)]] * 2)


def inputs(architecture: str, heads: int) -> tuple[Tensor, Prompt, Tensor, tuple[Tensor, ...]]:
    """Image, prompt, masks and features of two examples of 32 x 48 pixels."""
    generator = torch.Generator().manual_seed(0)
    rgb = torch.rand(2, 3, 32, 48, generator=generator)
    previous = torch.rand(2, 1, 16, 24, generator=generator)
    if architecture == "can":
        masks = torch.rand(2, heads, 32, 48, generator=generator)
        return rgb, Prompt(clicks=CLICKS), masks, ()
    masks = torch.rand(2, heads, 16, 24, generator=generator)
    features = (
        torch.randn(2, 128, 2, 3, generator=generator),
        torch.randn(2, 48, 8, 12, generator=generator),
    )
    return rgb, Prompt(clicks=CLICKS, previous=previous), masks, features


def network_of(architecture: str, heads: int = 6) -> SelectionNetwork:
    torch.manual_seed(0)
    return build_selection_network(SelectionConfig(architecture=architecture, heads=heads))


@pytest.mark.parametrize("heads", [1, 2, 6, 8])
@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_every_architecture(architecture: str, heads: int) -> None:
    network = network_of(architecture, heads)
    rated = network(*inputs(architecture, heads))
    assert rated.shape == (2, heads)
    score = network.score(rated)
    assert ((score >= 0) & (score <= 1)).all()
    loss = network.loss(rated, torch.rand(2, heads))
    loss.backward()
    for name, parameter in network.named_parameters():
        if heads == 1 and architecture == "can":
            continue  # a softmax over one mask has nothing to learn
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


class TestPaper:
    def test_sees_13_channels(self) -> None:
        network = CanSelection(SelectionConfig())
        first = network.body[0]
        assert isinstance(first, nn.Conv2d)
        assert first.in_channels == 13
        # Table 1 without layer 1: nine 3x3 convolutions and one 1x1 to M outputs.
        convolutions = [layer for layer in network.body if isinstance(layer, nn.Conv2d)]
        assert [layer.kernel_size for layer in convolutions] == [(3, 3)] * 9 + [(1, 1)]
        assert [layer.dilation[0] for layer in convolutions] == [1, 2, 4, 8, 16, 32, 64, 128, 1, 1]
        assert [layer.out_channels for layer in convolutions] == [64] * 9 + [6]

    def test_pools_its_full_resolution_maps(self) -> None:
        network = CanSelection(SelectionConfig())
        rgb, prompt, masks, features = inputs("can", 6)
        with torch.no_grad():
            distances = distance_maps(CLICKS, (32, 48))
            centred = [
                2 * rgb - 1,
                click_maps(CLICKS, (32, 48)),
                4 * torch.stack([each - each.mean((1, 2), keepdim=True) for each in distances]),
                8 * masks - 4,
            ]
            seen = torch.cat(centred, 1)
            expected = torch.stack([each.mean((1, 2)) for each in network.body(seen)])
            torch.testing.assert_close(network(rgb, prompt, masks, features), expected)

    def test_score_is_the_softmax(self) -> None:
        rated = torch.randn(3, 6)
        expected = rated.exp() / rated.exp().sum(1, keepdim=True)
        torch.testing.assert_close(CanSelection(SelectionConfig()).score(rated), expected)

    def test_learns_the_index_of_the_best(self) -> None:
        rated = torch.tensor([[9.0, 0.0, 0.0]])
        network = CanSelection(SelectionConfig(heads=3))
        right, wrong = torch.tensor([[0.9, 0.5, 0.1]]), torch.tensor([[0.5, 0.9, 0.1]])
        assert network.loss(rated, right) < 0.01 < 8 < network.loss(rated, wrong)


class TestPooled:
    @pytest.mark.parametrize("seed", range(3))
    def test_the_order_of_the_masks_does_not_matter(self, seed: int) -> None:
        network = network_of("pooled")
        rgb, prompt, masks, features = inputs("pooled", 6)
        order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            plain = network(rgb, prompt, masks, features)
            shuffled = network(rgb, prompt, masks[:, order], features)
        torch.testing.assert_close(shuffled, plain[:, order], rtol=1e-4, atol=1e-5)
        assert plain.std(1).min() > 0

    @pytest.mark.parametrize("value", [0.0, 1.0])
    def test_empty_and_full_masks_are_rated(self, value: float) -> None:
        network = network_of("pooled")
        rgb, prompt, masks, features = inputs("pooled", 6)
        rated = network(rgb, prompt, torch.full_like(masks, value), features)
        network.loss(rated, torch.full_like(rated, value)).backward()
        for parameter in network.parameters():
            assert parameter.grad is not None
            assert parameter.grad.isfinite().all()

    def test_facts_about_the_clicks(self) -> None:
        # A mask that holds the positive click and not the negative one, and its opposite.
        masks = torch.zeros(2, 2, 16, 24)
        masks[:, 0, 3:7, 0:5] = 1
        masks[:, 1] = 1 - masks[:, 0]
        prompt = Prompt(clicks=CLICKS, previous=masks[:, :1])
        facts = PooledSelection._facts(prompt, masks)
        missed, worst_missed, wrong, worst_wrong = (facts[0, :, i] for i in (5, 6, 8, 9))
        assert missed.tolist() == worst_missed.tolist() == [0, 1]
        assert wrong.tolist() == worst_wrong.tolist() == [0, 1]
        assert facts[0, :, 11].tolist() == [1, 0]
        assert facts.isfinite().all()

    def test_score_is_a_probability_of_each_mask_alone(self) -> None:
        rated = torch.tensor([[0.0, 2.0]])
        torch.testing.assert_close(network_of("pooled").score(rated), torch.tensor([[0.5, 0.8808]]))


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(WeightsError, match=r"The architecture of g is 'x'.*Known are can, pooled"):
        build_selection_network(SelectionConfig(architecture="x"))
