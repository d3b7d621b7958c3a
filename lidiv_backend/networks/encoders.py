"""Frozen encoders: an image in, feature levels out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lidiv_backend.errors import WeightsError
from lidiv_backend.weights import SOURCES, load_encoder_tensors


@dataclass(frozen=True, kw_only=True)
class LevelSpec:
    """One feature level of an encoder.

    Parameters
    ----------
    name
        Its name, for example ``relu1_2``.
    channels
        Number of feature channels.
    stride
        Pixels of the input for each cell.
    """

    name: str
    channels: int
    stride: int


class Encoder(nn.Module):
    """A frozen network whose activations describe an image.

    Subclasses say which levels they give. Parameters never require gradients and the module stays
    in evaluation mode.
    """

    #: Key in the registry and in `lidiv_backend.weights.SOURCES`.
    name: ClassVar[str]
    #: The levels in the order in which `forward` returns them.
    levels: ClassVar[tuple[LevelSpec, ...]]

    def train(self, mode: bool = True) -> Encoder:
        """Stay in evaluation mode: an encoder is frozen."""
        super().train(False)
        return self

    def forward(self, rgb: Tensor) -> tuple[Tensor, ...]:
        """Feature levels of a batch of images.

        Parameters
        ----------
        rgb
            float (B, 3, H, W) in [0, 1], RGB.

        Returns
        -------
        tuple of Tensor
            One (B, channels, ceil(H / stride), ceil(W / stride)) for each of `levels`.
        """
        raise NotImplementedError


class Vgg19(Encoder):
    """VGG-19 with the five levels of Section 3 of the paper: 1,472 channels."""

    name = "vgg19"
    levels = (
        LevelSpec(name="relu1_2", channels=64, stride=1),
        LevelSpec(name="relu2_2", channels=128, stride=2),
        LevelSpec(name="relu3_2", channels=256, stride=4),
        LevelSpec(name="relu4_2", channels=512, stride=8),
        LevelSpec(name="relu5_2", channels=512, stride=16),
    )
    #: Convolutions of each of the five blocks, as far as a level needs them.
    blocks: ClassVar[tuple[tuple[str, ...], ...]] = (
        ("conv1_1", "conv1_2"),
        ("conv2_1", "conv2_2"),
        ("conv3_1", "conv3_2", "conv3_3", "conv3_4"),
        ("conv4_1", "conv4_2", "conv4_3", "conv4_4"),
        ("conv5_1", "conv5_2"),
    )

    def __init__(self) -> None:
        super().__init__()
        self.input = nn.Conv2d(3, 3, 1)
        channels = 3
        for block, level in zip(self.blocks, self.levels, strict=True):
            for convolution in block:
                self.add_module(convolution, nn.Conv2d(channels, level.channels, 3, padding=1))
                channels = level.channels

    def forward(self, rgb: Tensor) -> tuple[Tensor, ...]:
        """See `Encoder.forward`."""
        x = self.input(rgb)
        features = []
        for number, block in enumerate(self.blocks):
            if number:
                # Odd sizes keep their last row and column, so that a level covers the image.
                x = F.max_pool2d(x, 2, ceil_mode=True)
            for convolution in block:
                x = F.relu(self.get_submodule(convolution)(x))
                if convolution.endswith("_2"):
                    features.append(x)
        return tuple(features)


class _LayerNorm2d(nn.Module):
    """Layer normalisation over the channels of (B, C, H, W), as SAM's neck has it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        last = x.permute(0, 2, 3, 1)
        normalised = F.layer_norm(last, last.shape[-1:], self.weight, self.bias, eps=1e-6)
        return normalised.permute(0, 3, 1, 2)


class MobileSam(Encoder):
    """MobileSAM's TinyViT-5M and its neck, at any input size (trained at 1024)."""

    name = "mobilesam"
    levels = (
        LevelSpec(name="stage0", channels=64, stride=4),
        LevelSpec(name="stage1", channels=128, stride=8),
        LevelSpec(name="stage2", channels=160, stride=16),
        LevelSpec(name="neck", channels=256, stride=16),
    )
    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.backbone = timm.create_model("tiny_vit_5m_224", pretrained=False, num_classes=0)
        self.backbone.head = nn.Identity()
        # SAM's variant keeps stride 16 in the last stage.
        self.backbone.stages[3].downsample.conv2.conv.stride = (1, 1)
        self.neck = nn.Sequential(
            nn.Conv2d(320, 256, 1, bias=False),
            _LayerNorm2d(256),
            nn.Conv2d(256, 256, 3, padding=1, bias=False),
            _LayerNorm2d(256),
        )
        mean = torch.tensor([123.675, 116.28, 103.53]) / 255
        deviation = torch.tensor([58.395, 57.12, 57.375]) / 255
        self.register_buffer("mean", mean.view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", deviation.view(1, 3, 1, 1), persistent=False)

    def fuse(self) -> None:
        """Fold each batch normalisation into its convolution: same numbers, fewer passes."""
        for module in self.backbone.modules():
            if hasattr(module, "conv") and isinstance(getattr(module, "bn", None), nn.BatchNorm2d):
                module.conv = fuse_conv_bn_eval(module.conv, module.bn)
                module.bn = nn.Identity()

    def forward(self, rgb: Tensor) -> tuple[Tensor, ...]:
        """See `Encoder.forward`."""
        x = self.backbone.patch_embed((rgb - self.mean) / self.deviation)
        stages = []
        for stage in self.backbone.stages:
            x = stage(x)
            stages.append(x)
        return (*stages[:3], self.neck(x))


class Dinov2(Encoder):
    """DINOv2 ViT-S/14: tokens of layers 8 and 12, at any input size.

    Patches have 14 pixels; so that levels of all encoders line up, the image is resized to 14/16
    of its size and the tokens' grid has stride 16.
    """

    name = "dinov2"
    levels = (
        LevelSpec(name="layer8", channels=384, stride=16),
        LevelSpec(name="layer12", channels=384, stride=16),
    )
    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.backbone = timm.create_model(
            "vit_small_patch14_dinov2", pretrained=False, num_classes=0, dynamic_img_size=True
        )
        mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        self.register_buffer("mean", mean.view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", deviation.view(1, 3, 1, 1), persistent=False)

    def forward(self, rgb: Tensor) -> tuple[Tensor, ...]:
        """See `Encoder.forward`."""
        rows, columns = (-(-side // 16) * 14 for side in rgb.shape[-2:])
        small = F.interpolate(
            (rgb - self.mean) / self.deviation, (rows, columns), mode="bilinear", antialias=True
        )
        tokens: list[Tensor] = self.backbone.forward_intermediates(
            small, indices=[7, 11], norm=True, intermediates_only=True
        )
        return tuple(tokens)


ENCODERS: dict[str, type[Encoder]] = {
    encoder.name: encoder for encoder in (Vgg19, MobileSam, Dinov2)
}


def build_encoder(name: str, *, pretrained: bool = True) -> Encoder:
    """Build a frozen encoder.

    Parameters
    ----------
    name
        A key of `ENCODERS`.
    pretrained
        Load its weights from the cache; without, it has random ones (for tests).

    Raises
    ------
    WeightsError
        If the encoder is unknown, or its weights were not fetched.
    """
    try:
        encoder = ENCODERS[name]()
    except KeyError:
        raise WeightsError(
            f"There is no encoder '{name}'.", remedy=f"Known are {', '.join(sorted(ENCODERS))}."
        ) from None
    if pretrained:
        try:
            encoder.load_state_dict(load_encoder_tensors(name))
        except RuntimeError as error:
            raise WeightsError(
                f"The cached weights of '{name}' are not what this version reads: {error}",
                remedy=f"Run `lidiv weights fetch {name} --force`.",
            ) from error
    encoder.eval().requires_grad_(False)
    if isinstance(encoder, MobileSam):
        encoder.fuse()
    return encoder


def encoder_checksum(name: str) -> str:
    """Checksum by which weights name the encoder that they were trained on."""
    return SOURCES[name].sha256
