"""Kept features: what the encoder says of a view, computed once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from lidiv_backend.errors import BadRequestError
from lidiv_backend.networks.encoders import Encoder, build_encoder
from lidiv_backend.training.config import PRESETS
from lidiv_backend.training.draws import Draw, Draws
from lidiv_backend.training.features import FeatureStore
from tests.tiny import PaintedSet

SIDE = 32


@pytest.fixture
def vgg() -> Encoder:
    torch.manual_seed(2)
    return build_encoder("vgg19", pretrained=False)


def store(folder: Path, vgg: Encoder, *, grid: int = 16, look: str = "a") -> FeatureStore:
    return FeatureStore(
        folder, count=5, levels=vgg.levels, crop=SIDE, grid=grid, made_for={"look": look}
    )


class Counting:
    """An encoder that counts the images that it was shown."""

    def __init__(self, vgg: Encoder) -> None:
        self.vgg = vgg
        self.images = 0

    @torch.no_grad()
    def __call__(self, rgb: Tensor) -> tuple[Tensor, ...]:
        self.images += len(rgb)
        features: tuple[Tensor, ...] = self.vgg(rgb)
        return features


class TestStore:
    @pytest.mark.parametrize(("grid", "cell"), [(1, 1), (4, 4), (8, 8), (16, 8)])
    def test_means_of_cells_of_what_the_encoder_says(
        self, tmp_path: Path, vgg: Encoder, grid: int, cell: int
    ) -> None:
        rgb = torch.rand(2, 3, SIDE, SIDE)
        compute = Counting(vgg)
        found = store(tmp_path, vgg, grid=grid).get([4, 1], rgb, compute)
        for level, spec, whole in zip(found, vgg.levels, compute(rgb), strict=True):
            literal = F.avg_pool2d(whole, max(1, cell // spec.stride))
            assert level.shape == literal.shape
            assert level.dtype == torch.bfloat16
            torch.testing.assert_close(level.float(), literal, rtol=2**-8, atol=1e-6)

    def test_are_computed_once(self, tmp_path: Path, vgg: Encoder) -> None:
        rgb = torch.rand(3, 3, SIDE, SIDE)
        compute = Counting(vgg)
        first = store(tmp_path, vgg).get([0, 3], rgb[:2], compute)
        assert compute.images == 2
        # Another run on the same views, one of which is new.
        again = store(tmp_path, vgg).get([3, 0, 2], rgb[[1, 0, 2]], compute)
        assert compute.images == 3
        for before, after in zip(first, again, strict=True):
            assert torch.equal(before[[1, 0]], after[:2])

    @pytest.mark.parametrize("other", [{"look": "b"}, {"grid": 2}])
    def test_of_other_views_are_refused(
        self, tmp_path: Path, vgg: Encoder, other: dict[str, object]
    ) -> None:
        store(tmp_path, vgg)
        with pytest.raises(BadRequestError, match="of other pictures"):
            store(tmp_path, vgg, **other)  # type: ignore[arg-type]


class TestViews:
    config = dataclasses.replace(
        PRESETS["paper"], crop=48, zoom=(0.6, 1.6), targets=1, jitter=0.3, views=2
    )

    def examples(self, seed: int) -> list[Draw]:
        config = dataclasses.replace(self.config, seed=seed)
        draws = Draws(PaintedSet(length=3), config, length=60)
        return [draws[i] for i in range(len(draws))]

    def test_a_view_looks_the_same_for_all_seeds_and_objects(self) -> None:
        pictures: dict[int, Tensor] = {}
        objects: dict[int, set[bytes]] = {}
        for example in self.examples(0) + self.examples(1):
            known = pictures.setdefault(example["view"], example["rgb"])
            assert torch.equal(known, example["rgb"])
            masks = objects.setdefault(example["view"], set())
            masks.add(example["masks"].numpy().tobytes())
        assert set(pictures) == set(range(3 * 2))
        looks = {picture.numpy().tobytes() for picture in pictures.values()}
        assert len(looks) == len(pictures)
        assert max(map(len, objects.values())) > 1

    def test_without_views_each_example_has_its_own_picture(self) -> None:
        config = dataclasses.replace(self.config, views=0)
        draws = Draws(PaintedSet(length=1), config, length=6)
        assert [draws[i]["view"] for i in range(6)] == [-1] * 6
        assert len({draws[i]["rgb"].numpy().tobytes() for i in range(6)}) == 6

    def test_masks_move_with_the_picture(self) -> None:
        config = dataclasses.replace(self.config, jitter=0.0, targets=2, zoom=(1.2, 1.6))
        draws = Draws(PaintedSet(), config, length=20)
        for i in range(len(draws)):
            example = draws[i]
            painted = example["rgb"][0].numpy() > 160
            for mask in example["masks"].numpy():
                # Outlines are blended by scaling; the rest is painted where the mask says.
                assert np.logical_and(mask, ~painted).sum() < 0.2 * mask.sum()
