"""The channels that carry what was clicked and shown."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from lidiv_backend.clicks import Click, click_maps, distance_maps, pack_clicks
from lidiv_backend.networks.prompt import Prompt, PromptChannels

CLICKS = pack_clicks([[Click(x=3, y=2), Click(x=9, y=7, positive=False)]])


@pytest.mark.parametrize("clicks", [False, True])
@pytest.mark.parametrize("distances", [False, True])
@pytest.mark.parametrize("previous", [False, True])
def test_channels_are_counted_and_ordered(clicks: bool, distances: bool, previous: bool) -> None:
    channels = PromptChannels(clicks=clicks, distances=distances, previous=previous, radius=2)
    if channels.count == 0:
        return
    mask = torch.rand(1, 1, 10, 12)
    drawn = channels.draw(Prompt(clicks=CLICKS, previous=mask), (10, 12))
    expected = []
    if clicks:
        expected.append(click_maps(CLICKS, (10, 12), radius=2))
    if distances:
        expected.append(distance_maps(CLICKS, (10, 12)))
    if previous:
        expected.append(mask)
    assert drawn.shape[1] == channels.count
    torch.testing.assert_close(drawn, torch.cat(expected, 1))


def test_a_disk_has_its_radius_in_cells() -> None:
    channels = PromptChannels(distances=False, radius=1.0)
    drawn = channels.draw(Prompt(clicks=CLICKS), (10, 12), stride=4)
    assert torch.equal(drawn, click_maps(CLICKS, (10, 12), stride=4, radius=4))


def test_without_a_previous_mask_the_channel_is_empty() -> None:
    channels = PromptChannels(clicks=False, distances=False, previous=True)
    assert (channels.draw(Prompt(clicks=CLICKS), (10, 12)) == 0).all()


@pytest.mark.parametrize("size", [(5, 6), (20, 24), (10, 12)])
def test_the_previous_mask_fits_any_grid(size: tuple[int, int]) -> None:
    channels = PromptChannels(clicks=False, distances=False, previous=True)
    mask = np.random.default_rng(0).random((10, 12)).astype(np.float32)
    prompt = Prompt(clicks=CLICKS, previous=torch.from_numpy(mask)[None, None])
    how = cv2.INTER_AREA if size[0] < 10 else cv2.INTER_LINEAR
    expected = cv2.resize(mask, size[::-1], interpolation=how)
    np.testing.assert_allclose(channels.draw(prompt, size)[0, 0].numpy(), expected, atol=1e-5)
