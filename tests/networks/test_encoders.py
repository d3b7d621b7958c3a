"""Frozen encoders: what they compute, and that nothing moves them."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import nn

from lidiv_backend.errors import WeightsError
from lidiv_backend.networks.encoders import (
    ENCODERS,
    Encoder,
    MobileSam,
    Vgg19,
    build_encoder,
    encoder_checksum,
)
from lidiv_backend.weights import SOURCES, encoder_path, load_encoder_tensors


def fetched(name: str) -> str:
    """The name, or a skip where the encoder was not fetched."""
    if not encoder_path(name).exists():
        pytest.skip(f"the encoder {name} is not in the cache: run `lidiv weights fetch {name}`")
    return name


@pytest.fixture(scope="module", params=sorted(ENCODERS))
def encoder(request: pytest.FixtureRequest) -> Encoder:
    return build_encoder(request.param, pretrained=False)


class TestEveryEncoder:
    @pytest.mark.parametrize("size", [(48, 64), (33, 50), (16, 16), (7, 90), (1, 1)])
    def test_levels_have_the_channels_and_sizes_that_they_promise(
        self, encoder: Encoder, size: tuple[int, int]
    ) -> None:
        with torch.no_grad():
            features = encoder(torch.rand(2, 3, *size))
        assert len(features) == len(encoder.levels)
        for feature, level in zip(features, encoder.levels, strict=True):
            cells = tuple(-(-side // level.stride) for side in size)
            assert feature.shape == (2, level.channels, *cells), level.name
            assert feature.isfinite().all()

    def test_is_frozen(self, encoder: Encoder) -> None:
        encoder.train()
        assert not any(module.training for module in encoder.modules())
        assert not any(parameter.requires_grad for parameter in encoder.parameters())
        outer = nn.ModuleList([encoder])
        outer.train()
        assert not encoder.training

    def test_has_a_source_with_a_checksum(self, encoder: Encoder) -> None:
        assert len(encoder_checksum(encoder.name)) == 64
        assert encoder.name in SOURCES

    def test_fetched_weights_fit_exactly(self, encoder: Encoder) -> None:
        tensors = load_encoder_tensors(fetched(encoder.name))
        expected = {
            name: tensor.shape
            for name, tensor in ENCODERS[encoder.name]().state_dict().items()
            if not name.endswith("num_batches_tracked")
        }
        assert {name: tensor.shape for name, tensor in tensors.items()} == expected
        assert all(tensor.isfinite().all() for tensor in tensors.values())


class TestVgg19:
    def test_equals_torchvisions_network_with_the_same_weights(self) -> None:
        encoder = build_encoder("vgg19", pretrained=False)
        assert isinstance(encoder, Vgg19)
        theirs = torchvision.models.vgg19(weights=None).features[:32].eval()
        convolutions = [layer for layer in theirs if isinstance(layer, nn.Conv2d)]
        ours = [encoder.get_submodule(name) for block in encoder.blocks for name in block]
        for layer, mine in zip(convolutions, ours, strict=True):
            layer.load_state_dict(mine.state_dict())
        rgb = torch.rand(1, 3, 64, 48)
        with torch.no_grad():
            x = encoder.input(rgb)
            expected = []
            for number, layer in enumerate(theirs):
                x = layer(x)
                if number in (3, 8, 13, 22, 31):  # the ReLUs behind convolutions 1_2 to 5_2
                    expected.append(x.clone())
            found = encoder(rgb)
        for level, feature, reference in zip(encoder.levels, found, expected, strict=True):
            torch.testing.assert_close(feature, reference, msg=level.name)

    def test_has_1472_channels(self) -> None:
        assert sum(level.channels for level in Vgg19.levels) == 1472


class TestMobileSam:
    def test_folding_the_batch_normalisation_changes_nothing(self) -> None:
        torch.manual_seed(0)
        plain = MobileSam().eval().requires_grad_(False)
        for module in plain.modules():
            if isinstance(module, nn.BatchNorm2d):
                # As if it had been trained: otherwise folding would be the identity.
                module.running_mean.uniform_(-0.5, 0.5)
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 2)
                module.bias.uniform_(-0.5, 0.5)
        fused = copy.deepcopy(plain)
        fused.fuse()
        assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
        rgb = torch.rand(1, 3, 96, 80)
        with torch.no_grad():
            for level, before, after in zip(plain.levels, plain(rgb), fused(rgb), strict=True):
                torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3, msg=level.name)

    def test_real_features_tell_a_disk_from_its_surroundings(self) -> None:
        encoder = build_encoder(fetched("mobilesam"))
        rows, columns = torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij")
        disk = ((rows - 128) ** 2 + (columns - 128) ** 2) < 64**2
        rgb = torch.where(disk, torch.tensor([0.9, 0.3, 0.1]).view(3, 1, 1), torch.tensor(0.2))
        with torch.no_grad():
            neck = encoder(rgb[None])[-1][0].flatten(1)
        neck = nn.functional.normalize(neck, dim=0)
        inside = disk[8::16, 8::16].flatten()
        centre = neck[:, 8 * 16 + 8]
        similar = centre @ neck
        assert similar[inside].mean() > similar[~inside].mean() + 0.2


class TestBuild:
    def test_an_unknown_encoder_is_refused(self) -> None:
        with pytest.raises(WeightsError, match=r"no encoder 'resnet'.*Known are dinov2, mobilesam"):
            build_encoder("resnet")

    @pytest.mark.parametrize("name", sorted(ENCODERS))
    def test_an_empty_cache_says_what_to_run(
        self, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: object
    ) -> None:
        monkeypatch.setenv("LIDIV_CACHE", str(tmp_path))
        with pytest.raises(WeightsError, match=f"lidiv weights fetch {name}"):
            build_encoder(name)

    def test_cached_tensors_of_another_layout_are_refused(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            "lidiv_backend.networks.encoders.load_encoder_tensors",
            lambda name: {"conv1_1.weight": torch.zeros(1)},
        )
        with pytest.raises(WeightsError, match="lidiv weights fetch vgg19 --force"):
            build_encoder("vgg19")
