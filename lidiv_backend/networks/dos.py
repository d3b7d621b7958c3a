"""The network of deep object selection (Xu et al., CVPR 2016), which the paper compares with."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from lidiv_backend.networks.encoders import Vgg19

#: Channels of the layers that stand for VGG's fully connected ones.
_WIDTH = 256


class FullyConvolutional(nn.Module):
    """An FCN-8s on VGG-19's convolutions that sees more channels than RGB.

    The first convolution is widened, as Xu et al. do: its weights for RGB are VGG's, those for
    the further channels begin at zero. The convolutions are those of `Vgg19`, up to conv5_2, and
    all of them are trained. Behind block 5 two convolutions of 256 channels stand for VGG's fully
    connected layers of 4,096; scores of blocks 3, 4 and 5 are upsampled bilinearly and added.

    Parameters
    ----------
    channels
        Number of channels beside RGB.
    outputs
        Number of masks.
    """

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.trunk = Vgg19()
        widths = [level.channels for level in Vgg19.levels]
        self.widening = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        nn.init.zeros_(self.widening.weight)
        self.context = nn.Sequential(
            nn.Conv2d(widths[4], _WIDTH, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(_WIDTH, _WIDTH, 1),
            nn.ReLU(inplace=True),
        )
        self.score3 = nn.Conv2d(widths[2], outputs, 1)
        self.score4 = nn.Conv2d(widths[3], outputs, 1)
        self.score5 = nn.Conv2d(_WIDTH, outputs, 1)

    def begin(self, rgb: Tensor) -> Tensor:
        """What the first convolution makes of RGB, (B, 64, H, W): no click changes it."""
        first: Tensor = self.trunk.get_submodule("conv1_1")(self.trunk.input(rgb))
        return first

    def forward(self, begun: Tensor, channels: Tensor) -> Tensor:
        """Masks before the sigmoid, at full size.

        Parameters
        ----------
        begun
            From `begin`.
        channels
            The other channels, (B, channels, H, W).

        Returns
        -------
        Tensor
            (B, outputs, H, W).
        """
        x = F.relu(begun + self.widening(channels))
        blocks = []
        for number, block in enumerate(Vgg19.blocks):
            for name in block[1:] if number == 0 else block:
                x = F.relu(self.trunk.get_submodule(name)(x))
            x = F.max_pool2d(x, 2, ceil_mode=True)
            blocks.append(x)
        total = self.score5(self.context(blocks[4]))
        for score, seen in ((self.score4, blocks[3]), (self.score3, blocks[2])):
            total = _enlarge(total, seen) + score(seen)
        return _enlarge(total, begun)


def _enlarge(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)
