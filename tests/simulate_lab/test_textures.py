from __future__ import annotations

import cv2
import numpy as np
import pytest

from lidiv_backend.simulate_lab.textures import Textures

pytest.importorskip("skimage")


def test_flaws_lie_apart_within_the_picture() -> None:
    images = Textures(6)
    assert len(images) == 6
    for index in range(6):
        image = images[index]
        assert image.rgb.shape == (256, 320, 3)
        assert len(image.objects) >= 3
        together = sum(item.mask.astype(int) for item in image.objects)
        assert np.max(together) == 1
        assert all(400 < item.mask.sum() < 8000 for item in image.objects)
        # One piece each.
        for item in image.objects:
            assert cv2.connectedComponents(item.mask.astype(np.uint8))[0] == 2


def test_neither_brightness_nor_contrast_tells_a_flaw() -> None:
    means, spreads = [], []
    for index in range(20):
        image = Textures(20)[index]
        flaws = np.any([item.mask for item in image.objects], axis=0)
        grey = image.rgb[..., 0].astype(float)
        means.append(grey[flaws].mean() - grey[~flaws].mean())
        spreads.append(grey[flaws].std() - grey[~flaws].std())
    assert abs(np.mean(means)) < 12
    assert abs(np.mean(spreads)) < 12


def test_pictures_are_the_same_every_time_and_differ() -> None:
    np.testing.assert_array_equal(Textures(3)[1].rgb, Textures(9)[1].rgb)
    assert not np.array_equal(Textures(3)[1].rgb, Textures(3)[2].rgb)
    assert not np.array_equal(Textures(3)[1].rgb, Textures(3, seed=1)[1].rgb)
