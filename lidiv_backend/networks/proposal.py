"""f: from image features and clicks to M segmentation masks."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from lidiv_backend.clicks import sampling_places
from lidiv_backend.errors import WeightsError
from lidiv_backend.networks.dos import FullyConvolutional
from lidiv_backend.networks.encoders import ENCODERS, Encoder, LevelSpec, Vgg19
from lidiv_backend.networks.prompt import Prompt, PromptChannels

#: Slope of every leaky ReLU in the paper's networks.
SLOPE = 0.2
#: Dilations of the 3x3 convolutions, layers 2 to 10 of Table 1.
DILATIONS = (1, 2, 4, 8, 16, 32, 64, 128, 1)
#: Dilations from which a CPU is quicker with the cells in another order.
WIDE = 32


class Decoded(NamedTuple):
    """What f gives for a prompt.

    Parameters
    ----------
    logits
        (B, M, h, w), the masks before the sigmoid, at `ProposalNetwork.output_stride`.
    features
        Activations that g may look at, coarse to fine, each (B, C, h', w').
    """

    logits: Tensor
    features: tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class ProposalConfig:
    """Architecture of f.

    Parameters
    ----------
    architecture
        ``hypercolumn`` (the paper's), ``pyramid``, or ``dos``, which the paper compares with.
    encoder
        Key in `ENCODERS`, or None: RGB alone ("without augmented input" in Table 3; ``dos``, which
        has convolutions of its own).
    heads
        M.
    width
        Channels of the hypercolumn's projection (64 in the paper).
    body
        ``can`` (Table 1) or ``unet`` (Table 4); hypercolumn only.
    prompt
        The channels that carry the clicks.
    """

    architecture: str = "hypercolumn"
    encoder: str | None = "vgg19"
    heads: int = 6
    width: int = 64
    body: str = "can"
    prompt: PromptChannels = PromptChannels()

    @property
    def has_grid(self) -> bool:
        """Whether it can be trained on means of cells, see `HypercolumnNetwork.coarsen`."""
        return self.architecture == "hypercolumn" and self.body == "can"

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``model.json``."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ProposalConfig:
        """Read what `to_json` wrote."""
        return cls(**{**values, "prompt": PromptChannels(**values["prompt"])})


class ProposalNetwork(nn.Module, abc.ABC):
    """f: `project` is done once for an image, `forward` for each click."""

    #: Pixels of the input for each cell of the masks.
    output_stride: int
    #: Sides of the input must be multiples of this.
    multiple: int

    def __init__(self, config: ProposalConfig) -> None:
        super().__init__()
        self.config = config

    @abc.abstractmethod
    def project(self, rgb: Tensor, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Everything that no click changes.

        Parameters
        ----------
        rgb
            float (B, 3, H, W) in [0, 1].
        features
            The levels of the encoder, see `Encoder.forward`.
        """

    @abc.abstractmethod
    def forward(self, projected: Sequence[Tensor], prompt: Prompt) -> Decoded:
        """Propose masks for a prompt; ``projected`` comes from `project`."""


def _level_specs(encoder: str | None) -> tuple[LevelSpec, ...]:
    return () if encoder is None else ENCODERS[encoder].levels


class ContextAggregation(nn.Sequential):
    """Layers 2 to 11 of Table 1, from (B, inputs, H, W) to (B, outputs, H, W).

    Layers begin as the identity, after the works on context aggregation that the paper builds on
    (Yu and Koltun, ICLR 2016; Chen et al., ICCV 2017): with torch's own choice what comes in has
    faded before it reaches the last of them, and training hardly starts.
    """

    def __init__(self, inputs: int, outputs: int, *, width: int = 64) -> None:
        layers: list[nn.Module] = []
        channels = inputs
        for dilation in DILATIONS:
            layers += [
                nn.Conv2d(channels, width, 3, padding=dilation, dilation=dilation),
                nn.LeakyReLU(SLOPE, inplace=True),
            ]
            channels = width
        layers.append(nn.Conv2d(width, outputs, 1))
        super().__init__(*layers)
        #: Pixels for each cell of what it is given; above 1 in training only.
        self.grid = 1
        for layer in layers:
            if isinstance(layer, nn.Conv2d) and layer.weight.shape == (width, width, 3, 3):
                nn.init.dirac_(layer.weight)
                assert layer.bias is not None  # noqa: S101
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the network to every pixel, or to the means of cells of `grid` pixels.

        On a grid, a convolution whose dilation is a multiple of it is the same convolution with
        the dilation divided by it. One that sees less than a cell's neighbours is reduced to the
        sum of its taps, which is what it does where nothing changes within a cell; only the tap in
        the middle learns then, so that nothing is blurred in between.
        """
        for layer in self:
            x = _on_grid(layer, x, self.grid) if isinstance(layer, nn.Conv2d) else layer(x)
        return x

    @torch.no_grad()
    def divide(self, factor: float) -> None:
        """Divide what comes out by ``factor``, for which every layer gives an equal part.

        Rectifiers pass a factor on, so the layers' parts multiply. The last layer alone would be
        left with weights so small that the first step of a training wipes them out.
        """
        layers = [layer for layer in self if isinstance(layer, nn.Conv2d)]
        part = factor ** (1 / len(layers))
        for number, layer in enumerate(layers, 1):
            layer.weight /= part
            if layer.bias is not None:
                layer.bias /= part**number


def _on_grid(layer: nn.Conv2d, x: Tensor, grid: int) -> Tensor:
    dilation = layer.dilation[0]
    if layer.kernel_size == (1, 1):
        whole: Tensor = layer(x)
        return whole
    if dilation % grid == 0:
        return _dilated(layer, x, dilation // grid)
    middle = layer.weight[:, :, 1:2, 1:2]
    around = layer.weight.sum((2, 3), keepdim=True) - middle
    return F.conv2d(x, middle + around.detach(), layer.bias)


def _dilated(layer: nn.Conv2d, x: Tensor, dilation: int) -> Tensor:
    """A 3x3 convolution of (B, C, H, W) whose taps are so many cells apart.

    Taps far apart are far apart in memory, too. So the rows and columns are put in another order
    first: those that lie ``dilation`` apart become neighbours, and a column of zeros ends each run
    of them. It gives the same numbers, on a CPU in a third of the time.
    """
    if dilation < WIDE or x.device.type != "cpu":
        return F.conv2d(x, layer.weight, layer.bias, padding=dilation, dilation=dilation)
    batch, _, height, width = x.shape
    x = F.pad(x, (0, dilation + -width % dilation, 0, -height % dilation)).permute(0, 2, 3, 1)
    rows, columns = x.shape[1] // dilation, x.shape[2] // dilation
    x = x.reshape(batch, rows, dilation, columns, dilation, -1).permute(0, 2, 1, 4, 3, 5)
    x = x.reshape(batch * dilation, rows, dilation * columns, -1).permute(0, 3, 1, 2)
    x = F.conv2d(x, layer.weight, layer.bias, padding=1).permute(0, 2, 3, 1)
    x = x.reshape(batch, dilation, rows, dilation, columns, -1).permute(0, 2, 1, 4, 3, 5)
    x = x.reshape(batch, rows * dilation, columns * dilation, -1).permute(0, 3, 1, 2)
    # A copy, since what follows is in place, which a slice makes slow backwards.
    return F.pad(x, (0, width - x.shape[-1], 0, height - x.shape[-2]))


class UNet(nn.Module):
    """The U-net of Table 4, from (B, inputs, H, W) to (B, outputs, H, W) at any size.

    Layers begin at He's scale: with torch's own choice what comes in fades by half in each of
    them, as in `ContextAggregation`.
    """

    def __init__(self, inputs: int, outputs: int, *, width: int = 64) -> None:
        super().__init__()
        widths = (width // 2, width // 2, width, width, width * 3 // 2)
        self.down = nn.ModuleList()
        self.up = nn.ModuleList()
        channels = inputs
        for level_width in widths:
            self.down.append(self._block(channels, level_width))
            channels = level_width
        for level_width in reversed(widths[:-1]):
            self.up.append(self._block(channels + level_width, level_width))
            channels = level_width
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, a=SLOPE)
                assert layer.bias is not None  # noqa: S101
                nn.init.zeros_(layer.bias)
        self.head = nn.Conv2d(channels, outputs, 1)

    @staticmethod
    def _block(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1),
            nn.LeakyReLU(SLOPE, inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1),
            nn.LeakyReLU(SLOPE, inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the network."""
        skips = []
        for number, block in enumerate(self.down):
            if number:
                x = F.max_pool2d(x, 2, ceil_mode=True)
            x = block(x)
            skips.append(x)
        for block, skip in zip(self.up, reversed(skips[:-1]), strict=True):
            x = F.interpolate(x, skip.shape[-2:], mode="bilinear", align_corners=False)
            x = block(torch.cat([x, skip], 1))
        head: Tensor = self.head(x)
        return head


BODIES: dict[str, type[ContextAggregation] | type[UNet]] = {
    "can": ContextAggregation,
    "unet": UNet,
}


class HypercolumnNetwork(ProposalNetwork):
    """The paper's f, at full resolution.

    Layer 1 is an affine projection of the 1,479-channel hypercolumn. It is linear, as is bilinear
    upsampling, so each level is projected at its own resolution, upsampled and added: the same
    numbers, and the tensor of 1,479 channels never exists. All but the prompt's channels is
    computed once for an image.

    The channels are brought to like sizes first. To the projection, which is learned, that makes no
    difference; to Adam, whose steps are the same for small inputs and for large ones, it does:
    1,472 channels of activations between 0 and 50 would drown four between 0 and 1.
    """

    output_stride: int = 1
    multiple: int = 1
    #: Factors before the projection, for activations of the encoder and for the prompt's channels.
    level_scale = 1 / 16
    prompt_scale = 8.0

    def __init__(self, config: ProposalConfig) -> None:
        super().__init__(config)
        self.levels = _level_specs(config.encoder)
        self.project_rgb = nn.Conv2d(3, config.width, 1)
        self.project_levels = nn.ModuleList(
            nn.Conv2d(level.channels, config.width, 1, bias=False) for level in self.levels
        )
        self.project_prompt = nn.Conv2d(config.prompt.count, config.width, 1, bias=False)
        for project in self.project_levels:
            assert isinstance(project, nn.Conv2d)  # noqa: S101
            nn.init.normal_(project.weight, std=2 / project.in_channels**0.5)
        self.body = BODIES[config.body](config.width, config.heads, width=config.width)

    def project(self, rgb: Tensor, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """See `ProposalNetwork.project`; one map, (B, width, H, W)."""
        grid = self.output_stride
        total: Tensor = self.project_rgb(F.avg_pool2d(rgb, grid) if grid > 1 else rgb)
        for project, level, feature in zip(self.project_levels, self.levels, features, strict=True):
            if level.stride < grid and feature.shape[-1] > total.shape[-1]:
                # Kept features are means of cells already, perhaps of finer ones.
                feature = F.avg_pool2d(feature, feature.shape[-1] // total.shape[-1])
            total = total + _upsample(project(feature * self.level_scale), total)
        return (total,)

    def forward(self, projected: Sequence[Tensor], prompt: Prompt) -> Decoded:
        """See `ProposalNetwork.forward`."""
        (image,) = projected
        size = (image.shape[-2], image.shape[-1])
        channels = self.config.prompt.draw_means(prompt, size, grid=self.output_stride)
        return Decoded(self.body(image + self.project_prompt(channels * self.prompt_scale)), ())

    def coarsen(self, grid: int) -> None:
        """Train on the means of cells of ``grid`` x ``grid`` pixels, in a fraction of the time.

        Parameters
        ----------
        grid
            A power of 2; 1 for every pixel, which is how the network is used.

        Raises
        ------
        ValueError
            If the body cannot; see `ContextAggregation.forward`.
        """
        if not isinstance(self.body, ContextAggregation):
            raise ValueError("Only the context aggregation network trains on a grid.")
        self.output_stride = self.multiple = self.body.grid = grid

    @contextmanager
    def at_least(self, grid: int) -> Iterator[None]:
        """Be on cells of ``grid`` pixels for a while, if not on larger ones; see `coarsen`."""
        before = self.output_stride
        if grid <= before:
            yield
            return
        self.coarsen(grid)
        try:
            yield
        finally:
            self.coarsen(before)

    def soften(self, factor: float) -> None:
        """Divide the logits by ``factor``: the same masks at 0.5, away from saturation.

        Raises
        ------
        ValueError
            If the body cannot; see `ContextAggregation.divide`.
        """
        if not isinstance(self.body, ContextAggregation):
            raise ValueError("Only the context aggregation network can be softened.")
        self.body.divide(factor)


class DosNetwork(ProposalNetwork):
    """The network of deep object selection as an f: RGB and distance maps in, a mask out."""

    output_stride = 1
    multiple = 1
    #: Key in `ENCODERS` of the weights that training begins with.
    begins_with = Vgg19.name
    #: Distance maps are channels of 0 to 255 beside RGB of the same scale, as in Xu et al.
    prompt_scale = 255.0

    def __init__(self, config: ProposalConfig) -> None:
        super().__init__(config)
        if config.encoder is not None:
            raise WeightsError(
                f"'dos' takes no features of '{config.encoder}': it is an encoder itself.",
                remedy="Set proposal.encoder=null.",
            )
        self.body = FullyConvolutional(config.prompt.count, config.heads)

    def begin_with(self, vgg: Encoder) -> None:
        """Take over the weights of `begins_with`; training goes on from them."""
        self.body.trunk.load_state_dict(vgg.state_dict())

    def project(self, rgb: Tensor, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """See `ProposalNetwork.project`; one map, (B, 64, H, W)."""
        return (self.body.begin(rgb),)

    def forward(self, projected: Sequence[Tensor], prompt: Prompt) -> Decoded:
        """See `ProposalNetwork.forward`."""
        (begun,) = projected
        channels = self.config.prompt.draw(prompt, (begun.shape[-2], begun.shape[-1]))
        return Decoded(self.body(begun, channels * self.prompt_scale), ())


class _Convolution(nn.Sequential):
    """3x3 convolution and leaky ReLU behind a group normalisation."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.GroupNorm(8, inputs),
            nn.Conv2d(inputs, outputs, 3, padding=1),
            nn.LeakyReLU(SLOPE, inplace=True),
        )


class _Residual(nn.Module):
    """Two 3x3 convolutions beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_Convolution(width, width), nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x)
        return out


class _Attention(nn.Module):
    """A transformer block over the cells of a coarse map, with a depthwise convolution before.

    The convolution gives the attention its sense of place, so that any size of map will do.
    """

    def __init__(self, width: int, *, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.place = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.merge = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.place(x)
        batch, width, height, columns = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        parts = self.qkv(self.norm_attention(tokens))
        parts = parts.view(batch, -1, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        attended = _attend(*parts.unbind(0))
        tokens = tokens + self.merge(attended.transpose(1, 2).flatten(2))
        tokens = tokens + self.mlp(self.norm_mlp(tokens))
        mapped: Tensor = tokens.transpose(1, 2).reshape(batch, width, height, columns)
        return mapped


def _attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention, each (B, heads, N, C)."""
    if queries.device.type != "cpu" or queries.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(queries, keys, values)
    # Torch's own takes twice as long on a CPU: the weights of one head fit into its cache, and
    # matrix products in bfloat16 are what it does fastest.
    queries = queries * queries.shape[-1] ** -0.5
    heads = zip(*(part.flatten(0, 1) for part in (queries, keys, values)), strict=True)
    attended = [(query @ key.T).softmax(-1) @ value for query, key, value in heads]
    return torch.stack(attended).view_as(queries)


class _Similarity(nn.Module):
    """How alike each cell is to the cells that were clicked.

    What a distance transform is in the plane, this is in feature space: for each of a few learned
    subspaces the largest cosine to a positive and to a negative click.
    """

    def __init__(self, inputs: int, *, subspaces: int, width: int, stride: int) -> None:
        super().__init__()
        self.subspaces = subspaces
        self.stride = stride
        self.embed = nn.Conv2d(inputs, subspaces * width, 1)

    @property
    def count(self) -> int:
        """Number of channels that `forward` gives."""
        return 2 * self.subspaces

    def describe(self, x: Tensor) -> Tensor:
        """Unit vectors of each cell and subspace, (B, subspaces * width, h, w)."""
        parts: Tensor = self.embed(x).float()
        parts = parts.reshape(len(parts), self.subspaces, -1, *parts.shape[-2:])
        return F.normalize(parts, dim=2, eps=1e-3).flatten(1, 2).to(x.dtype)

    def forward(self, described: Tensor, clicks: Tensor) -> Tensor:
        """Similarity maps, (B, 2 * subspaces, h, w) in [-1, 1]; 0 where there is no click."""
        height, width = described.shape[-2:]
        places = sampling_places(clicks, (height, width), stride=self.stride).unsqueeze(2)
        sampled = F.grid_sample(
            described.float(), places, align_corners=False, padding_mode="border"
        )
        batch = len(described)
        sampled = sampled.reshape(batch, self.subspaces, -1, sampled.shape[2])
        cells = described.reshape(batch, self.subspaces, -1, height * width)
        cosine = torch.einsum("bsck,bscn->bskn", sampled.to(cells.dtype), cells).float()
        maps = []
        for wanted in (clicks[..., 2] > 0, clicks[..., 2] < 0):
            hidden = cosine.masked_fill(~wanted[:, None, :, None], -2.0).amax(2)
            maps.append(torch.where(hidden < -1.5, torch.zeros_like(hidden), hidden))
        return torch.cat(maps, 1).reshape(batch, -1, height, width)


class PyramidNetwork(ProposalNetwork):
    """f on a pyramid: context at stride 16, outlines at stride 2.

    Needs an encoder with levels at strides 4, 8 and 16. At stride 16 a few attention blocks see
    the whole image at once; the finer levels sharpen what they found. The click enters at every
    level.
    """

    output_stride = 2
    multiple = 16
    _widths = (128, 64, 48, 24)

    def __init__(self, config: ProposalConfig) -> None:
        super().__init__(config)
        specs = _level_specs(config.encoder)
        if not {4, 8, 16} <= {level.stride for level in specs}:
            raise WeightsError(
                f"The pyramid needs levels at strides 4, 8 and 16; '{config.encoder}' lacks one.",
                remedy="Use the encoder mobilesam.",
            )
        self._of_stride = {
            stride: [i for i, level in enumerate(specs) if level.stride == stride]
            for stride in (4, 8, 16)
        }
        coarse, middle, fine, finest = self._widths
        prompt = config.prompt.count

        def lateral(stride: int, width: int) -> nn.Conv2d:
            return nn.Conv2d(sum(specs[i].channels for i in self._of_stride[stride]), width, 1)

        self.lateral16, self.lateral8, self.lateral4 = (
            lateral(16, coarse),
            lateral(8, middle),
            lateral(4, fine),
        )
        self.stem = nn.Sequential(
            nn.Conv2d(3, finest, 3, stride=2, padding=1),
            nn.LeakyReLU(SLOPE, inplace=True),
            nn.Conv2d(finest, finest, 3, padding=1),
        )
        self.similarity16 = _Similarity(coarse, subspaces=8, width=16, stride=16)
        self.similarity8 = _Similarity(middle + coarse, subspaces=6, width=12, stride=8)
        self.prompt16 = nn.Conv2d(prompt + self.similarity16.count, coarse, 3, padding=1)
        self.prompt8 = nn.Conv2d(prompt + self.similarity8.count, middle, 3, padding=1)
        self.prompt4 = nn.Conv2d(prompt, fine, 3, padding=1)
        self.prompt2 = nn.Conv2d(prompt, finest, 3, padding=1)
        self.context = nn.Sequential(*(_Attention(coarse) for _ in range(3)))
        self.down8 = nn.Conv2d(coarse, middle, 1)
        self.refine8 = nn.Sequential(_Residual(middle), _Residual(middle))
        self.down4 = nn.Conv2d(middle, fine, 1)
        self.refine4 = nn.Sequential(_Residual(fine), _Residual(fine))
        self.down2 = nn.Conv2d(fine, finest, 1)
        self.refine2 = _Residual(finest)
        self.propose4 = nn.Conv2d(fine, config.heads, 1)
        self.propose2 = nn.Conv2d(finest, config.heads, 1)

    def project(self, rgb: Tensor, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """See `ProposalNetwork.project`; maps at strides 16, 8, 4, 2 and the descriptors."""

        def level(stride: int) -> Tensor:
            return torch.cat([features[i] for i in self._of_stride[stride]], 1)

        p16, p8 = self.lateral16(level(16)), self.lateral8(level(8))
        p4, p2 = self.lateral4(level(4)), self.stem(rgb)
        both = torch.cat([p8, _upsample(p16, p8)], 1)
        return p16, p8, p4, p2, self.similarity16.describe(p16), self.similarity8.describe(both)

    def forward(self, projected: Sequence[Tensor], prompt: Prompt) -> Decoded:
        """See `ProposalNetwork.forward`."""
        p16, p8, p4, p2, s16, s8 = projected

        def draw(like: Tensor, stride: int) -> Tensor:
            size = (like.shape[-2], like.shape[-1])
            return self.config.prompt.draw(prompt, size, stride=stride)

        seen = torch.cat([draw(p16, 16), self.similarity16(s16, prompt.clicks)], 1)
        x16 = self.context(p16 + self.prompt16(seen))
        seen = torch.cat([draw(p8, 8), self.similarity8(s8, prompt.clicks)], 1)
        x8 = self.refine8(p8 + self.prompt8(seen) + _upsample(self.down8(x16), p8))
        x4 = self.refine4(p4 + self.prompt4(draw(p4, 4)) + _upsample(self.down4(x8), p4))
        x2 = self.refine2(p2 + self.prompt2(draw(p2, 2)) + _upsample(self.down2(x4), p2))
        logits = self.propose2(x2) + _upsample(self.propose4(x4), p2)
        return Decoded(logits, (x16, x4))


def _upsample(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)


ARCHITECTURES: dict[str, type[ProposalNetwork]] = {
    "hypercolumn": HypercolumnNetwork,
    "pyramid": PyramidNetwork,
    "dos": DosNetwork,
}


def build_proposal_network(config: ProposalConfig) -> ProposalNetwork:
    """Build f with random weights.

    Raises
    ------
    WeightsError
        If its architecture, body or encoder is unknown, or they do not fit together.
    """
    choices = [
        ("architecture", config.architecture, ARCHITECTURES.keys()),
        ("body", config.body, BODIES.keys()),
        ("encoder", config.encoder, [None, *ENCODERS]),
    ]
    for what, name, known in choices:
        if name not in known:
            raise WeightsError(
                f"The {what} of f is '{name}', which is unknown.",
                remedy=f"Known are {', '.join(map(str, known))}; is the file of a newer version?",
            )
    return ARCHITECTURES[config.architecture](config)
