"""f: Table 1, the split projection, and every architecture that is registered."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from lidiv_backend.clicks import Click, click_maps, distance_maps, pack_clicks
from lidiv_backend.errors import WeightsError
from lidiv_backend.networks.encoders import ENCODERS, Encoder, Vgg19, build_encoder
from lidiv_backend.networks.prompt import Prompt, PromptChannels
from lidiv_backend.networks.proposal import (
    ARCHITECTURES,
    BODIES,
    ContextAggregation,
    DosNetwork,
    HypercolumnNetwork,
    ProposalConfig,
    ProposalNetwork,
    _attend,
    _on_grid,
    _Similarity,
    build_proposal_network,
)
from lidiv_backend.networks.selection import SelectionConfig, build_selection_network
from lidiv_backend.training.config import PRESETS

#: Table 1: convolution, dilation and receptive field of each layer.
TABLE_1 = [
    (1, 1, 1),
    (3, 1, 3),
    (3, 2, 7),
    (3, 4, 15),
    (3, 8, 31),
    (3, 16, 63),
    (3, 32, 127),
    (3, 64, 255),
    (3, 128, 511),
    (3, 1, 513),
    (1, 1, 513),
]


@pytest.fixture(scope="module")
def encoders() -> Callable[[str | None], Encoder | None]:
    """Encoders with random weights, each made once."""
    made: dict[str, Encoder] = {}

    def get(name: str | None) -> Encoder | None:
        if name is None:
            return None
        if name not in made:
            torch.manual_seed(0)
            made[name] = build_encoder(name, pretrained=False)
        return made[name]

    return get


def prompt_for(size: tuple[int, int], *, batch: int = 1) -> Prompt:
    height, width = size
    clicks = [Click(x=width // 2, y=height // 2), Click(x=0, y=height - 1, positive=False)]
    return Prompt(clicks=pack_clicks([clicks] * batch), previous=torch.rand(batch, 1, *size))


class TestTable1:
    def test_layers(self) -> None:
        network = build_proposal_network(PRESETS["paper"].proposal)
        assert isinstance(network, HypercolumnNetwork)
        layers = list(network.body)
        convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
        # Layer 1 is the projection; its parts are compared with the literal form below.
        assert len(convolutions) == len(TABLE_1) - 1
        for layer, (side, dilation, _) in zip(convolutions, TABLE_1[1:], strict=True):
            assert layer.kernel_size == (side, side)
            assert layer.dilation == (dilation, dilation)
            assert layer.in_channels == 64
            assert layer.bias is not None
        assert [layer.out_channels for layer in convolutions] == [64] * 9 + [6]
        activations = [layer for layer in layers if not isinstance(layer, nn.Conv2d)]
        assert len(activations) == 9
        assert all(
            isinstance(layer, nn.LeakyReLU) and layer.negative_slope == 0.2 for layer in activations
        )

    @pytest.mark.parametrize("axis", [0, 1])
    def test_receptive_fields(self, axis: int) -> None:
        """An impulse through positive weights lights up exactly what a layer can see."""
        body = ContextAggregation(1, 1, width=1)
        reached = []
        with torch.no_grad():
            for parameter in body.parameters():
                parameter.fill_(1.0 if parameter.ndim == 4 else 0.0)
            shape = [1, 1, 1, 1]
            shape[2 + axis] = 700
            x = torch.zeros(shape, dtype=torch.float64)
            x.view(-1)[350] = 1
            for layer in body.double():
                x = layer(x)
                if isinstance(layer, nn.Conv2d):
                    places = x.flatten().nonzero()
                    assert places.min() + places.max() == 700
                    reached.append(int(places.max() - places.min()) + 1)
        assert reached == [field for _, _, field in TABLE_1[1:]]

    def test_the_whole_field_is_a_filled_square(self) -> None:
        body = ContextAggregation(1, 1, width=1).double()
        with torch.no_grad():
            for parameter in body.parameters():
                parameter.fill_(1.0 if parameter.ndim == 4 else 0.0)
            x = torch.zeros(1, 1, 530, 530, dtype=torch.float64)
            x[0, 0, 265, 265] = 1
            lit = body(x)[0, 0] != 0
        assert lit.sum() == 513**2
        assert lit[265 - 256 : 265 + 257, 265 - 256 : 265 + 257].all()

    @pytest.mark.parametrize("size", [(128, 128), (140, 33), (1, 300)])
    def test_taps_far_apart_are_those_of_an_ordinary_dilated_convolution(
        self, size: tuple[int, int]
    ) -> None:
        """Whatever the order in memory: the same values, and the same gradients."""
        torch.manual_seed(3)
        body = ContextAggregation(3, 2, width=4).double()
        for parameter in body.parameters():
            nn.init.normal_(parameter, std=0.2)
        ours = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
        plain = ours.detach().clone().requires_grad_()
        out = body(ours)
        expected = plain
        for layer in body:
            expected = layer(expected)
        torch.testing.assert_close(out, expected)

        towards = torch.randn_like(expected)
        wanted = torch.autograd.grad(expected, [plain, *body.parameters()], towards)
        given = torch.autograd.grad(out, [ours, *body.parameters()], towards)
        torch.testing.assert_close(given, wanted)

    @pytest.mark.parametrize("preset", sorted(PRESETS))
    def test_f_and_g_have_less_than_a_million_parameters(self, preset: str) -> None:
        config = PRESETS[preset]
        assert config.selection is not None
        for network in (
            build_proposal_network(config.proposal),
            build_selection_network(config.selection),
        ):
            assert 10_000 < sum(parameter.numel() for parameter in network.parameters()) < 1_000_000


class TestSplitProjection:
    def test_equals_the_literal_hypercolumn(
        self, encoders: Callable[[str | None], Encoder | None]
    ) -> None:
        torch.manual_seed(1)
        network = HypercolumnNetwork(ProposalConfig())
        network.body = nn.Identity()
        encoder = encoders("vgg19")
        assert encoder is not None
        size = (37, 50)
        rgb, prompt = torch.rand(2, 3, *size), prompt_for(size, batch=2)
        with torch.no_grad():
            features = encoder(rgb)
            found = network(network.project(rgb, features), prompt).logits

            upsampled = [
                F.interpolate(feature, size, mode="bilinear", align_corners=False)
                for feature in features
            ]
            hypercolumn = torch.cat(
                [
                    rgb,
                    *upsampled,
                    click_maps(prompt.clicks, size),
                    distance_maps(prompt.clicks, size),
                ],
                1,
            )
            assert hypercolumn.shape[1] == 1479
            layer1 = nn.Conv2d(1479, 64, 1)
            parts = [network.project_rgb, *network.project_levels, network.project_prompt]
            scales = [1.0] + [network.level_scale] * len(features) + [network.prompt_scale]
            weights = [part.weight * scale for part, scale in zip(parts, scales, strict=True)]
            layer1.weight.copy_(torch.cat(weights, 1))
            layer1.bias.copy_(network.project_rgb.bias)
            expected = layer1(hypercolumn)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)

    def test_clicks_change_nothing_that_is_cached(
        self, encoders: Callable[[str | None], Encoder | None]
    ) -> None:
        network = build_proposal_network(ProposalConfig(encoder=None))
        rgb = torch.rand(1, 3, 20, 20)
        with torch.no_grad():
            projected = network.project(rgb, ())
            copies = [part.clone() for part in projected]
            network(projected, prompt_for((20, 20)))
        for part, copy in zip(projected, copies, strict=True):
            assert torch.equal(part, copy)


def walk() -> list[ProposalConfig]:
    """Every architecture with every body, encoder and kind of prompt that goes with it."""
    prompts = (PromptChannels(), PromptChannels(previous=True, radius=2.0))
    configs = []
    for architecture, prompt in itertools.product(ARCHITECTURES, prompts):
        if architecture == "hypercolumn":
            configs += [
                ProposalConfig(architecture=architecture, encoder=encoder, body=body, prompt=prompt)
                for encoder in (None, *ENCODERS)
                for body in BODIES
            ]
        elif architecture == "dos":
            configs.append(ProposalConfig(architecture=architecture, encoder=None, prompt=prompt))
        else:
            configs += [
                ProposalConfig(architecture=architecture, encoder=encoder, prompt=prompt)
                for encoder, levels in ((name, ENCODERS[name].levels) for name in ENCODERS)
                if {4, 8, 16} <= {level.stride for level in levels}
            ]
    return configs


@pytest.mark.parametrize(
    "config",
    walk(),
    ids=lambda c: f"{c.architecture}-{c.encoder}-{c.body}-{'previous' * c.prompt.previous}",
)
def test_every_architecture(
    config: ProposalConfig, encoders: Callable[[str | None], Encoder | None]
) -> None:
    torch.manual_seed(0)
    network = build_proposal_network(config)
    encoder = encoders(config.encoder)
    # Odd numbers of the smallest cell: nothing may count on divisibility.
    sizes = [(3 * network.multiple, 5 * network.multiple), (1, 1), (37, 21)]
    for size in sizes if network.multiple == 1 else [sizes[0], (network.multiple,) * 2]:
        rgb, prompt = torch.rand(2, 3, *size), prompt_for(size, batch=2)
        features = () if encoder is None else encoder(rgb)
        projected = network.project(rgb, features)
        decoded = network(projected, prompt)
        cells = tuple(side // network.output_stride for side in size)
        assert decoded.logits.shape == (2, config.heads, *cells)
        assert decoded.logits.isfinite().all()
    network.zero_grad()
    (decoded.logits.sigmoid().mean() + sum(part.mean() for part in decoded.features)).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("heads", range(1, 9))
@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_m_is_a_parameter(preset: str, heads: int) -> None:
    config = ProposalConfig(**{**vars(PRESETS[preset].proposal), "heads": heads})
    network = build_proposal_network(config)
    assert network.config.heads == heads
    selection = build_selection_network(SelectionConfig(heads=heads))
    rgb, masks = torch.rand(1, 3, 9, 9), torch.rand(1, heads, 9, 9)
    assert selection(rgb, prompt_for((9, 9)), masks, ()).shape == (1, heads)


def test_configs_survive_json() -> None:
    for config in walk():
        assert ProposalConfig.from_json(config.to_json()) == config


class TestDos:
    """The network of Xu et al. in the literal form: a widened VGG-19 with skip connections."""

    def network(self) -> DosNetwork:
        torch.manual_seed(1)
        prompt = PromptChannels(clicks=False)
        config = ProposalConfig(architecture="dos", encoder=None, heads=1, prompt=prompt)
        network = build_proposal_network(config)
        assert isinstance(network, DosNetwork)
        return network

    def test_equals_the_literal_form(
        self, encoders: Callable[[str | None], Encoder | None]
    ) -> None:
        network, vgg = self.network(), encoders("vgg19")
        assert isinstance(vgg, Vgg19)
        network.begin_with(vgg)
        nn.init.normal_(network.body.widening.weight, std=0.1)
        size = (53, 70)
        rgb, prompt = torch.rand(1, 3, *size), prompt_for(size)
        maps = distance_maps(prompt.clicks, size)
        with torch.no_grad():
            found = network(network.project(rgb, ()), prompt).logits
            first = nn.Conv2d(5, 64, 3, padding=1)
            first.weight.copy_(torch.cat([vgg.conv1_1.weight, network.body.widening.weight], 1))
            first.bias.copy_(vgg.conv1_1.bias)
            # VGG's own 1x1 layer before conv1_1 leaves the maps alone.
            x = F.relu(first(torch.cat([vgg.input(rgb), 255 * maps], 1)))
            x = F.max_pool2d(F.relu(vgg.conv1_2(x)), 2, ceil_mode=True)
            x = F.relu(vgg.conv2_2(F.relu(vgg.conv2_1(x))))
            x = F.max_pool2d(x, 2, ceil_mode=True)
            pooled = []
            for names in (
                ("conv3_1", "conv3_2", "conv3_3", "conv3_4"),
                ("conv4_1", "conv4_2", "conv4_3", "conv4_4"),
                ("conv5_1", "conv5_2"),
            ):
                for name in names:
                    x = F.relu(getattr(vgg, name)(x))
                x = F.max_pool2d(x, 2, ceil_mode=True)
                pooled.append(x)
            body = network.body
            total = body.score5(body.context(pooled[2]))
            for score, seen in ((body.score4, pooled[1]), (body.score3, pooled[0])):
                up = F.interpolate(total, seen.shape[-2:], mode="bilinear", align_corners=False)
                total = up + score(seen)
            expected = F.interpolate(total, size, mode="bilinear", align_corners=False)
        assert [tuple(x.shape[-2:]) for x in pooled] == [(7, 9), (4, 5), (2, 3)]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)

    def test_begins_blind_to_clicks(self) -> None:
        """As Xu et al. have it: what is new in the first convolution begins at zero."""
        network = self.network()
        rgb = torch.rand(1, 3, 32, 40)
        with torch.no_grad():
            begun = network.project(rgb, ())
            one = network(begun, prompt_for((32, 40))).logits
            other = network(begun, Prompt(clicks=pack_clicks([[Click(x=1, y=1)]]))).logits
        assert torch.equal(one, other)


class TestRefusals:
    def test_dos_on_features_of_another_encoder(self) -> None:
        with pytest.raises(WeightsError, match="is an encoder itself"):
            build_proposal_network(ProposalConfig(architecture="dos", encoder="vgg19"))

    @pytest.mark.parametrize("field", ["architecture", "encoder", "body"])
    def test_unknown_names(self, field: str) -> None:
        with pytest.raises(WeightsError, match=f"The {field} of f is 'x'.*newer version"):
            build_proposal_network(ProposalConfig(**{field: "x"}))

    def test_a_pyramid_without_its_levels(self) -> None:
        with pytest.raises(WeightsError, match="needs levels at strides 4, 8 and 16"):
            build_proposal_network(ProposalConfig(architecture="pyramid", encoder="dinov2"))


class TestSimilarity:
    def test_is_the_largest_cosine_to_a_click(self) -> None:
        torch.manual_seed(0)
        height, width, stride, subspaces, channels = 4, 6, 8, 3, 5
        similarity = _Similarity(7, subspaces=subspaces, width=channels, stride=stride)
        x = torch.randn(2, 7, height, width)
        # Clicks at the centres of cells, so that sampling is reading.
        cells = {0: [(1, 2, 1), (3, 5, 1), (0, 0, -1)], 1: [(2, 2, -1)]}
        packed = torch.zeros(2, 3, 3)
        for example, places in cells.items():
            for number, (row, column, sign) in enumerate(places):
                packed[example, number] = torch.tensor(
                    [(column + 0.5) * stride - 0.5, (row + 0.5) * stride - 0.5, sign]
                )
        with torch.no_grad():
            found = similarity(similarity.describe(x), packed).numpy()
            vectors = similarity.embed(x).numpy()
        assert found.shape == (2, 2 * subspaces, height, width)
        vectors = vectors.reshape(2, subspaces, channels, height, width)
        for example, space in itertools.product(range(2), range(subspaces)):
            for channel, wanted in enumerate((1, -1)):
                places = [(r, c) for r, c, sign in cells[example] if sign == wanted]
                for row, column in itertools.product(range(height), range(width)):
                    here = vectors[example, space, :, row, column]
                    cosines = [
                        here @ there / (np.linalg.norm(here) * np.linalg.norm(there))
                        for there in (vectors[example, space, :, r, c] for r, c in places)
                    ]
                    expected = max(cosines, default=0.0)
                    got = found[example, channel * subspaces + space, row, column]
                    assert got == pytest.approx(expected, abs=1e-5)

    def test_without_a_click_it_is_0(self) -> None:
        similarity = _Similarity(4, subspaces=2, width=3, stride=4)
        described = similarity.describe(torch.randn(1, 4, 5, 5))
        assert (similarity(described, pack_clicks([[]])) == 0).all()
        only_positive = similarity(described, pack_clicks([[Click(x=3, y=3)]]))
        assert (only_positive[:, 2:] == 0).all()
        assert (only_positive[:, :2] != 0).any()


@pytest.mark.parametrize("learning", [False, True])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_attention_is_a_softmax_over_the_keys(kind: torch.dtype, learning: bool) -> None:
    parts = torch.randn(3, 2, 4, 17, 8, generator=torch.Generator().manual_seed(3)).to(kind)
    queries, keys, values = parts.double().unbind(0)
    weights = torch.exp(torch.einsum("bhnc,bhmc->bhnm", queries, keys) / 8**0.5)
    expected = torch.einsum("bhnm,bhmc->bhnc", weights / weights.sum(-1, keepdim=True), values)
    with torch.set_grad_enabled(learning):
        attended = _attend(*parts.unbind(0))
    assert attended.dtype == kind
    close = 1e-5 if kind == torch.float32 else 2e-2
    torch.testing.assert_close(attended.double(), expected, rtol=close, atol=close)


def test_padding_of_the_batch_changes_nothing() -> None:
    torch.manual_seed(0)
    config = ProposalConfig(architecture="pyramid", encoder="mobilesam")
    network: ProposalNetwork = build_proposal_network(config).eval()
    rgb = torch.rand(2, 3, 32, 48)
    features: list[Tensor] = [
        torch.randn(2, level.channels, 32 // level.stride, 48 // level.stride)
        for level in ENCODERS["mobilesam"].levels
    ]
    short, long = [Click(x=5, y=5)], [Click(x=9, y=20), Click(x=40, y=3, positive=False)]
    with torch.no_grad():
        projected = network.project(rgb, features)
        together = network(projected, Prompt(clicks=pack_clicks([short, long]))).logits
        for index, clicks in enumerate((short, long)):
            alone = network(
                [part[index : index + 1] for part in projected],
                Prompt(clicks=pack_clicks([clicks])),
            ).logits
            torch.testing.assert_close(together[index : index + 1], alone, rtol=1e-4, atol=1e-4)


def test_context_aggregation_begins_as_the_identity() -> None:
    body = ContextAggregation(64, 64)
    x = torch.rand(1, 64, 9, 11)  # positive, where the leaky ReLU is the identity, too
    with torch.no_grad():
        seen = x.clone()
        for layer in list(body)[:-1]:
            seen = layer(seen)
    torch.testing.assert_close(seen, x)


@torch.no_grad()
def test_dividing_the_context_aggregation_changes_nothing_but_the_scale() -> None:
    torch.manual_seed(4)
    body = ContextAggregation(5, 3, width=8)
    for layer in body:
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.3)
            assert layer.bias is not None
            nn.init.normal_(layer.bias)
    x = torch.randn(2, 5, 12, 10)
    whole = body(x)
    largest = [float(part.abs().max()) for part in body.parameters()]
    body.divide(700)
    torch.testing.assert_close(body(x) * 700, whole, rtol=1e-3, atol=1e-3 * float(whole.std()))
    # No layer is left with weights that a step of training would wipe out.
    assert all(
        float(part.abs().max()) > 0.4 * before
        for part, before in zip(body.parameters(), largest, strict=True)
        if part.ndim == 4
    )


class TestGrid:
    """Training on the means of cells: the same function as at full resolution."""

    @staticmethod
    def network(grid: int) -> ContextAggregation:
        torch.manual_seed(3)
        network = ContextAggregation(5, 2, width=8)
        for layer in network:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.2)
                if layer.kernel_size == (3, 3) and layer.dilation[0] < grid:
                    # What such a tap sees at full resolution, no coarser network can.
                    layer.weight.data *= torch.tensor([0.0, 1.0, 0.0]).outer(
                        torch.tensor([0.0, 1.0, 0.0])
                    )
        return network

    @pytest.mark.parametrize("grid", [2, 4, 8])
    @torch.no_grad()
    def test_is_the_network_where_nothing_changes_within_a_cell(self, grid: int) -> None:
        network = self.network(grid)
        cells = torch.randn(2, 5, 6, 9)
        pixels = cells.repeat_interleave(grid, 2).repeat_interleave(grid, 3)
        literal = network(pixels)
        network.grid = grid
        got = network(cells).repeat_interleave(grid, 2).repeat_interleave(grid, 3)
        torch.testing.assert_close(got, literal)
        assert got.std() > 0.01

    @torch.no_grad()
    def test_taps_within_a_cell_count_by_their_sum(self) -> None:
        layer = nn.Conv2d(5, 4, 3, padding=2, dilation=2)
        flat = torch.randn(1, 5, 1, 1).expand(1, 5, 9, 9)
        torch.testing.assert_close(
            _on_grid(layer, flat, 4)[:, :, 4, 4], layer(flat)[:, :, 4, 4], rtol=1e-4, atol=1e-4
        )

    def test_only_the_middle_of_such_taps_learns(self) -> None:
        network = self.network(1)
        network.grid = 4
        network(torch.randn(1, 5, 70, 70)).square().sum().backward()
        for layer in network:
            if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
                assert layer.weight.grad is not None
                around = layer.weight.grad.clone()
                assert around[:, :, 1, 1].abs().sum() > 0
                around[:, :, 1, 1] = 0
                assert bool(around.any()) == (layer.dilation[0] >= 4)

    @torch.no_grad()
    def test_projection_and_prompt_are_means_of_cells(self) -> None:
        torch.manual_seed(0)
        network = HypercolumnNetwork(ProposalConfig())
        vgg = build_encoder("vgg19", pretrained=False)
        rgb = torch.rand(1, 3, 64, 96)
        features = vgg(rgb)
        (fine,) = network.project(rgb, features)
        network.coarsen(4)
        (coarse,) = network.project(rgb, features)
        assert coarse.shape[-2:] == (16, 24)
        inside = (slice(None), slice(None), slice(5, -5), slice(5, -5))
        # Bilinear upsampling is not quite the mean over a cell where a level is coarser than it.
        difference = (F.avg_pool2d(fine, 4) - coarse)[inside].abs().mean()
        assert difference < 0.02 * fine.std()
        prompt = prompt_for((64, 96))
        channels = PromptChannels()
        got = channels.draw_means(prompt, (16, 24), grid=4)
        literal = F.avg_pool2d(channels.draw(prompt, (64, 96)), 4)
        torch.testing.assert_close(got[:, :2], literal[:, :2])
        assert (got[:, 2:] - literal[:, 2:]).abs().max() < 2 / 255

    def test_the_unet_has_none(self) -> None:
        network = HypercolumnNetwork(ProposalConfig(encoder=None, body="unet"))
        with pytest.raises(ValueError, match="context aggregation"):
            network.coarsen(4)
