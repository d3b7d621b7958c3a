"""For which images a fine-tuned model is, and what answers on the others."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lidiv_backend.clicks import Click
from lidiv_backend.errors import BadRequestError
from lidiv_backend.model import Elsewhere, InferenceConfig, Model
from lidiv_backend.predictor import Predictor, Proposal
from lidiv_backend.scope import Scope, describe_image
from tests import tiny

INFERENCE = InferenceConfig(longest_side=64, max_pixels=None, merge_iou=0.9, zoom_side=64)
ABOUT = tiny.description(pyramid=True, previous=True, inference=INFERENCE)
#: The second is looked at closer: the object is small.
CLICKS = [Click(x=60, y=40), Click(x=63, y=43, positive=False), Click(x=58, y=41)]


def smooth(seed: int) -> NDArray[np.uint8]:
    """An image unlike noise."""
    noise = tiny.photo(6, 8, seed=seed)
    return cv2.resize(noise, (160, 120), interpolation=cv2.INTER_CUBIC).astype(np.uint8)


def noisy(seed: int) -> NDArray[np.uint8]:
    return tiny.photo(120, 160, seed=seed)


def ask(predictor: Predictor, rgb: NDArray[np.uint8]) -> list[list[Proposal]]:
    image = predictor.embed(rgb)
    return [predictor.predict(image, CLICKS[:count]) for count in (1, 2, 3)]


def alike(first: list[list[Proposal]], second: list[list[Proposal]]) -> bool:
    return all(tiny.same(ours, theirs) for ours, theirs in zip(first, second, strict=True))


def of(model: Model) -> Predictor:
    encoder = tiny.predictor(ABOUT)._encoder
    return Predictor(model, encoder, device=tiny.CPU)


def test_an_image_is_described_by_means_and_deviations() -> None:
    torch.manual_seed(0)
    levels = [torch.randn(1, 3, 7, 5), torch.randn(1, 2, 2, 2).bfloat16()]
    expected = np.concatenate(
        [
            np.concatenate([cells.mean(axis=(1, 2)), cells.std(axis=(1, 2))])
            for cells in (level[0].float().numpy().astype(np.float64) for level in levels)
        ]
    )
    found = describe_image(levels)
    assert found.shape == (10,)
    np.testing.assert_allclose(found.numpy(), expected / np.linalg.norm(expected), atol=1e-6)


def test_the_nearest_image_decides() -> None:
    axes = torch.eye(3)
    scope = Scope(own=axes[:1], others=axes[1:])
    assert scope.covers(torch.tensor([0.8, 0.6, 0.0]))
    assert not scope.covers(torch.tensor([0.6, 0.0, 0.8]))
    # One of many is enough, however far the others are.
    wider = Scope(own=axes[[1, 0]], others=-axes)
    assert wider.covers(torch.tensor([0.1, 0.9, 0.0]))


def test_each_image_is_answered_by_the_weights_that_know_its_like() -> None:
    tuned, came = tiny.model(ABOUT, seed=1), tiny.model(ABOUT, seed=2)
    describe = of(tuned).describe
    scope = Scope(
        own=torch.stack([describe(smooth(seed)) for seed in range(4)]),
        others=torch.stack([describe(noisy(seed)) for seed in range(4)]),
    )
    elsewhere = Elsewhere(scope=scope, proposal=came.proposal, selection=came.selection)
    both = of(replace(tuned, elsewhere=elsewhere))
    for rgb, expected in ((smooth(9), tuned), (noisy(9), came)):
        assert alike(ask(both, rgb), ask(of(expected), rgb))
        assert both.embed(rgb).covered == (expected is tuned)
    # They would not have said the same.
    assert not alike(ask(of(tuned), smooth(9)), ask(of(came), smooth(9)))


def test_without_an_encoder_no_image_can_be_described() -> None:
    with pytest.raises(BadRequestError, match="no encoder"):
        tiny.predictor(tiny.description()).describe(noisy(0))
