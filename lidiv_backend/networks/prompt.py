"""What a click changes: the channels that f and g see beside the image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from lidiv_backend.clicks import click_maps, distance_maps, squared_distances


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """The clicks so far and the mask that was shown before the last of them.

    Parameters
    ----------
    clicks
        float32 (B, K, 3) of x, y, sign in pixels of the network's input; see `pack_clicks`.
    previous
        float (B, 1, h, w) in [0, 1] at any resolution, or None: nothing was shown yet.
    """

    clicks: Tensor
    previous: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class PromptChannels:
    """Which channels a network is given.

    Parameters
    ----------
    clicks
        The two click maps S_p and S_n.
    distances
        The two truncated distance transforms T_p and T_n (Eq. 1).
    previous
        The mask that was shown before.
    radius
        Radius of a click's disk in cells; 0 is the paper's single pixel.
    """

    clicks: bool = True
    distances: bool = True
    previous: bool = False
    radius: float = 0.0

    @property
    def count(self) -> int:
        """Number of channels."""
        return 2 * self.clicks + 2 * self.distances + self.previous

    def draw(self, prompt: Prompt, size: tuple[int, int], *, stride: int = 1) -> Tensor:
        """The prompt as channels.

        Parameters
        ----------
        prompt
            What was clicked and shown.
        size
            Height and width in cells.
        stride
            Pixels of the network's input for each cell.

        Returns
        -------
        Tensor
            float32 (B, count, H, W) in [0, 1].
        """
        channels = []
        clicks, radius = prompt.clicks, self.radius * stride
        squared = None
        if self.distances or (self.clicks and radius > 0):
            squared = squared_distances(clicks, size, stride=stride)
        if self.clicks:
            channels.append(click_maps(clicks, size, stride=stride, radius=radius, squared=squared))
        if self.distances:
            channels.append(distance_maps(clicks, size, stride=stride, squared=squared))
        if self.previous:
            if prompt.previous is None:
                channels.append(clicks.new_zeros(clicks.shape[0], 1, *size))
            else:
                # Adaptive pooling is area averaging where the map shrinks and exact where it fits.
                previous = prompt.previous.float()
                if previous.shape[-2] < size[0] or previous.shape[-1] < size[1]:
                    previous = F.interpolate(previous, size, mode="bilinear", align_corners=False)
                channels.append(F.adaptive_avg_pool2d(previous, size))
        return torch.cat(channels, 1)

    def draw_means(self, prompt: Prompt, size: tuple[int, int], *, grid: int) -> Tensor:
        """The prompt as the means over cells of what `draw` gives for every pixel.

        Parameters
        ----------
        prompt
            What was clicked and shown.
        size
            Height and width in cells.
        grid
            Pixels for each cell.

        Returns
        -------
        Tensor
            float32 (B, count, H, W) in [0, 1]; of a distance, its value in the middle of the cell
            stands for the mean. A click's disk must be one pixel.
        """
        channels = self.draw(prompt, size, stride=grid)
        if self.clicks and grid > 1:
            channels[:, :2] /= grid**2
        return channels
