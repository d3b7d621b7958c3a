"""Training examples: the same for everybody, and image and masks moved alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lidiv_backend.errors import DataError
from lidiv_backend.model import InferenceConfig
from lidiv_backend.records import AnnotatedImage, ObjectMask
from lidiv_backend.training.batches import load_draws
from lidiv_backend.training.config import PRESETS, TrainingConfig
from lidiv_backend.training.draws import Draw, Draws, count_masks
from tests.tiny import SMALL_CROPS, PaintedSet


def draws(images: PaintedSet, config: TrainingConfig = SMALL_CROPS, **options: bool) -> Draws:
    return Draws(images, config, length=1000, **options)


def painted(rgb: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where the image says that there is an object."""
    found: NDArray[np.bool_] = rgb[0] > 160
    return found


def equal(first: Draw, second: Draw) -> bool:
    return (
        torch.equal(first["rgb"], second["rgb"])
        and torch.equal(first["masks"], second["masks"])
        and torch.equal(first["valid"], second["valid"])
    )


class TestSeeding:
    config = dataclasses.replace(SMALL_CROPS, jitter=0.4, merged=0.3)

    def test_an_example_depends_on_seed_and_number_alone(self) -> None:
        first = draws(PaintedSet(), self.config)
        forwards = [first[i] for i in range(6)]
        torch.manual_seed(99)
        np.random.seed(99)
        second = draws(PaintedSet(), self.config)
        backwards = [second[i] for i in reversed(range(6))][::-1]
        assert all(equal(a, b) for a, b in zip(forwards, backwards, strict=True))
        assert not any(equal(forwards[0], other) for other in forwards[1:])

    def test_another_seed_gives_other_examples(self) -> None:
        other = draws(PaintedSet(), dataclasses.replace(self.config, seed=1))
        assert not equal(draws(PaintedSet(), self.config)[0], other[0])

    def test_a_worker_process_gives_the_same(self) -> None:
        here = draws(PaintedSet(), self.config)
        source = Draws(PaintedSet(), self.config, length=10)
        loader = load_draws(source, range(1, 9), images=3, workers=2)
        there = [draw for batch in loader for draw in batch]
        assert len(there) == 8
        assert all(equal(draw, here[i]) for i, draw in enumerate(there, start=1))

    def test_the_global_generator_is_left_alone(self) -> None:
        torch.manual_seed(3)
        expected = torch.rand(1)
        torch.manual_seed(3)
        draws(PaintedSet(), self.config)[0]
        assert torch.equal(torch.rand(1), expected)


class TestGeometry:
    @pytest.mark.parametrize("augment", [False, True])
    @pytest.mark.parametrize(("objects", "crop"), [(1, 48), (2, 144)])
    def test_masks_line_up_with_the_image(self, augment: bool, objects: int, crop: int) -> None:
        config = dataclasses.replace(SMALL_CROPS, crop=crop, targets=objects)
        source = draws(PaintedSet(count=objects), config, augment=augment)
        for index in range(30):
            draw = source[index]
            assert draw["rgb"].shape == (3, crop, crop)
            assert draw["masks"].shape == draw["valid"].shape == (objects, crop, crop)
            seen = painted(draw["rgb"].numpy())
            union = draw["masks"].any(0).numpy()
            valid = draw["valid"][0].numpy()
            # The colours blend along the outline: away from it they must agree exactly.
            clear = (_erode(union) | _erode(~union)) & valid
            assert clear.mean() > 0.05
            assert (seen == union)[clear].all(), index
            for mask in draw["masks"].numpy():
                # Each object has a green of its own.
                greens = draw["rgb"].numpy()[1][_erode(_erode(mask))]
                assert not len(greens) or np.ptp(greens) < 10

    @pytest.mark.parametrize("zoom", [0.53, 0.7, 0.9, 1.3, 1.7, 2.0])
    def test_no_zoom_shifts_masks_against_the_image(self, zoom: float) -> None:
        config = dataclasses.replace(SMALL_CROPS, crop=160, zoom=(zoom, zoom), targets=1)
        source = draws(PaintedSet(length=500, count=1), config, augment=False)
        shifts = []
        for index in range(50):
            draw = source[index]
            # Where red rises through half is where the image says that the outline is.
            red = (draw["rgb"][0].double().numpy() - 30) / 170 * draw["valid"][0].numpy()
            mask = draw["masks"][0].double().numpy()
            red[red < 0.05] = 0
            shifts.append([_centre(red, axis) - _centre(mask, axis) for axis in (0, 1)])
        # Rounding moves each single outline by up to half a pixel, but not all of them one way.
        # (torchvision's own resizing of masks shifts them by 0.25 to 0.5 pixels here.)
        assert np.abs(np.mean(shifts, axis=0)).max() < 0.12

    def test_the_crop_holds_the_target(self) -> None:
        config = dataclasses.replace(SMALL_CROPS, crop=64, zoom=(0.8, 1.0), targets=1)
        images = PaintedSet(count=2)
        areas = {round(item.mask.sum()) for i in range(len(images)) for item in images[i].objects}
        source = draws(images, dataclasses.replace(config, zoom=(1.0, 1.0)), augment=False)
        for index in range(30):
            # At its own size every object fits into the crop: it is there to the last pixel.
            assert int(source[index]["masks"][0].sum()) in areas

    def test_an_object_larger_than_the_crop_fills_much_of_it(self) -> None:
        config = dataclasses.replace(SMALL_CROPS, crop=16, zoom=(1.0, 1.0), targets=1)
        source = draws(PaintedSet(count=1), config, augment=False)
        assert all(source[i]["masks"][0].float().mean() > 0.25 for i in range(30))

    def test_close_ups_are_filled_by_the_object(self) -> None:
        plain = dataclasses.replace(SMALL_CROPS, crop=24, zoom=(0.8, 2.6), targets=1)
        close = dataclasses.replace(plain, close_ups=1.0)
        # Of a rectangle that is larger than the crop along both axes there is nothing else to see.
        source = draws(PaintedSet(count=1), close)
        shares = [source[i]["masks"][0].float().mean().item() for i in range(60)]
        usual = draws(PaintedSet(count=1), plain)
        before = [usual[i]["masks"][0].float().mean().item() for i in range(60)]
        assert np.median(shares) > 0.97
        assert np.median(before) < 0.9

    def test_no_close_up_of_an_object_that_is_too_small(self) -> None:
        # At 1.5 times its size no object's shorter side comes near the crop's.
        plain = dataclasses.replace(SMALL_CROPS, crop=144, zoom=(0.8, 1.5), targets=1)
        close = dataclasses.replace(plain, close_ups=1.0)
        source = draws(PaintedSet(count=2), close)
        assert all(source[i]["masks"][0].float().mean() < 0.5 for i in range(30))

    def test_a_collage_has_objects_of_other_images_that_are_not_meant(self) -> None:
        config = dataclasses.replace(SMALL_CROPS, crop=144, collages=1.0, targets=1)
        source = draws(PaintedSet(count=1), config)
        counts = set()
        for index in range(40):
            draw = source[index]
            assert draw["rgb"].shape == (3, 144, 144)
            assert draw["masks"].shape == draw["valid"].shape == (1, 144, 144)
            assert draw["valid"].all()  # the images fill it
            mask = draw["masks"][0].numpy()
            seen = painted(draw["rgb"].numpy())
            # The mask is one of the painted objects, whole, and no other.
            count, labels = cv2.connectedComponents(seen.astype(np.uint8))
            sizes = np.bincount(labels.ravel())
            objects = [k for k in range(1, count) if sizes[k] >= 20]
            overlaps = [int((mask & (labels == k)).sum()) for k in objects]
            touched = [k for k, both in zip(objects, overlaps, strict=True) if both > 0]
            assert len(touched) == 1, index
            own = labels == touched[0]
            clear = _erode(own) | _erode(~own)
            assert (mask == own)[clear].all(), index
            counts.add(len(objects))
        assert min(counts) <= 4  # 2 x 2 images
        assert max(counts) > 9  # more than 3 x 3

    def test_padding_counts_for_nothing(self) -> None:
        config = dataclasses.replace(SMALL_CROPS, crop=160, zoom=(1.0, 1.0))
        source = draws(PaintedSet(), config)
        for index in range(10):
            draw = source[index]
            inside = draw["valid"][0]
            assert int(inside.sum()) == 60 * 80  # the image, and nothing beside it
            rows, columns = inside.any(1).nonzero(), inside.any(0).nonzero()
            assert rows.max() - rows.min() + 1 == 60
            assert columns.max() - columns.min() + 1 == 80
            assert (draw["rgb"][:, ~inside] == 124).all()
            assert not draw["masks"][:, ~inside].any()

    def test_mirroring_is_common_to_image_and_masks(self) -> None:
        plain, mirrored = draws(PaintedSet(), augment=False), draws(PaintedSet(), augment=True)
        flipped = 0
        for index in range(30):
            before, after = plain[index], mirrored[index]
            if equal(before, after):
                continue
            flipped += 1
            for key in ("rgb", "masks", "valid"):
                assert torch.equal(after[key].flip(-1), before[key])  # type: ignore[literal-required]
        assert 8 <= flipped <= 22

    def test_colours_change_the_image_only(self) -> None:
        config = dataclasses.replace(SMALL_CROPS, jitter=0.5)
        plain, coloured = draws(PaintedSet()), draws(PaintedSet(), config)
        changed = 0
        for index in range(20):
            before, after = plain[index], coloured[index]
            # Mirroring is drawn first, from the same generator.
            assert torch.equal(before["masks"], after["masks"])
            changed += not torch.equal(before["rgb"], after["rgb"])
        assert changed > 5

    def test_without_a_crop_the_image_keeps_its_size(self) -> None:
        config = dataclasses.replace(PRESETS["paper"], kinds=SMALL_CROPS.kinds)
        draw = draws(PaintedSet(), config, augment=False)[0]
        assert draw["rgb"].shape == (3, 60, 80)
        assert (painted(draw["rgb"].numpy()) >= draw["masks"][0].numpy()).all()

    def test_without_a_crop_the_limit_of_pixels_holds(self) -> None:
        config = dataclasses.replace(PRESETS["paper"], inference=InferenceConfig(max_pixels=1200))
        draw = draws(PaintedSet(), config, augment=False)[0]
        assert draw["rgb"].shape == (3, 30, 40)
        assert draw["masks"].shape == (1, 30, 40)


def _erode(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels whose eight neighbours are in the mask, too."""
    padded = np.pad(mask, 1, mode="edge")
    height, width = mask.shape
    inner = np.ones_like(mask)
    for row in range(3):
        for column in range(3):
            inner &= padded[row : row + height, column : column + width]
    return inner


def _centre(weights: NDArray[np.float64], axis: int) -> float:
    profile = weights.sum(1 - axis)
    return float((profile * np.arange(len(profile))).sum() / profile.sum())


class TestObjects:
    def test_targets_are_different_objects(self) -> None:
        for index in range(10):
            first, second = draws(PaintedSet(), dataclasses.replace(SMALL_CROPS, crop=96))[index][
                "masks"
            ]
            assert not (first & second).any()

    def test_fewer_objects_are_repeated(self) -> None:
        config = dataclasses.replace(SMALL_CROPS, targets=3)
        masks = draws(PaintedSet(count=1), config)[0]["masks"]
        assert torch.equal(masks[0], masks[1])
        assert torch.equal(masks[0], masks[2])

    def test_kinds_that_are_not_asked_for_never_come(self) -> None:
        images = PaintedSet(kinds=("instance", "part"))
        config = dataclasses.replace(SMALL_CROPS, kinds={"instance": 1.0}, targets=2, crop=96)
        for index in range(10):
            draw = draws(images, config, augment=False)[index]
            # Instances are painted with green 40, parts with 100.
            assert torch.equal(draw["masks"][0], draw["masks"][1])
            inside = torch.from_numpy(_erode(draw["masks"][0].numpy()))
            assert draw["rgb"][1][inside].float().mean() < 60

    def test_kinds_come_as_often_as_they_are_asked_for(self) -> None:
        images = PaintedSet(kinds=("instance", "part"))
        config = dataclasses.replace(
            SMALL_CROPS, kinds={"instance": 3.0, "part": 1.0}, targets=1, crop=96
        )
        source = draws(images, config, augment=False)
        parts = 0
        for index in range(200):
            draw = source[index]
            inside = torch.from_numpy(_erode(draw["masks"][0].numpy()))
            parts += bool(draw["rgb"][1][inside].float().mean() > 60)
        assert 30 <= parts <= 70  # 50 expected, 3 standard deviations are 18

    def test_two_objects_can_be_merged(self) -> None:
        config = dataclasses.replace(SMALL_CROPS, merged=1.0, targets=1, crop=96)
        draw = draws(PaintedSet(), config, augment=False)[0]
        seen = painted(draw["rgb"].numpy())
        assert np.mean(seen == draw["masks"][0].numpy()) > 0.97

    def test_ignored_pixels_do_not_count(self) -> None:
        @dataclass
        class WithIgnored(PaintedSet):
            def __getitem__(self, index: int) -> AnnotatedImage:
                image = super().__getitem__(index)
                ignore = np.zeros((self.height, self.width), bool)
                ignore[:, ::2] = True
                objects = tuple(dataclasses.replace(o, ignore=ignore) for o in image.objects)
                return dataclasses.replace(image, objects=objects)

        config = dataclasses.replace(SMALL_CROPS, crop=96, zoom=(1.0, 1.0))
        assert int(draws(WithIgnored(), config)[0]["valid"][0].sum()) == 60 * 80 // 2


class TestUnusable:
    def test_an_unusable_image_is_replaced(self) -> None:
        class Broken(PaintedSet):
            def __getitem__(self, index: int) -> AnnotatedImage:
                if index % 2:
                    raise DataError("torn")
                return super().__getitem__(index)

        assert all(draws(Broken())[i]["rgb"].shape == (3, 48, 48) for i in range(10))

    def test_nothing_but_unusable_images_says_why(self) -> None:
        class Torn(PaintedSet):
            def __getitem__(self, index: int) -> AnnotatedImage:
                raise DataError("torn apart")

        with pytest.raises(DataError, match=r"Twenty images of painted.*torn apart"):
            draws(Torn())[0]

    def test_an_empty_mask_is_unusable(self) -> None:
        class Empty(PaintedSet):
            def __getitem__(self, index: int) -> AnnotatedImage:
                image = super().__getitem__(index)
                empty = ObjectMask(name="x", mask=np.zeros((self.height, self.width), bool))
                return dataclasses.replace(image, objects=(empty,))

        with pytest.raises(DataError, match="empty mask"):
            draws(Empty())[0]

    def test_a_set_without_images_is_refused(self) -> None:
        with pytest.raises(DataError, match="no mask of the kinds instance, component"):
            draws(PaintedSet(length=0))


@dataclass(frozen=True)
class Entry:
    kind: str
    source: str


@dataclass
class IndexedSet(PaintedSet):
    """Knows its masks without reading them: image 3 has what is rare."""

    def entries(self, index: int) -> Sequence[Entry]:
        return [Entry("part" if index == 3 else "instance", "a" if index < 4 else "b")] * 4

    def __getitem__(self, index: int) -> AnnotatedImage:
        image = super().__getitem__(index)
        kind = "part" if index == 3 else "instance"
        objects = tuple(dataclasses.replace(item, kind=kind) for item in image.objects)
        return dataclasses.replace(image, objects=objects)


class TestIndexed:
    def test_images_come_as_often_as_their_kinds(self) -> None:
        config = dataclasses.replace(SMALL_CROPS, kinds={"instance": 1.0, "part": 9.0})
        images = IndexedSet()
        source = draws(images, config)
        for index in range(200):
            source[index]
        # Square roots: 3 : 1, among seven others, so 30 % of 200; others alike.
        counts = np.bincount(images.read[:200], minlength=8)
        assert 42 <= counts[3] <= 78
        assert counts[[0, 1, 2, 4, 5, 6, 7]].min() >= 5

    def test_images_without_such_a_kind_are_never_read(self) -> None:
        images = IndexedSet()
        source = draws(images, dataclasses.replace(SMALL_CROPS, kinds={"part": 1.0}))
        for index in range(10):
            source[index]
        assert set(images.read) == {3}

    def test_a_set_without_such_a_kind_is_refused(self) -> None:
        with pytest.raises(DataError, match="no mask of the kinds region"):
            draws(IndexedSet(), dataclasses.replace(SMALL_CROPS, kinds={"region": 1.0}))

    def test_masks_are_counted_by_origin_and_kind(self) -> None:
        assert count_masks(IndexedSet()) == {"a instance": 12, "a part": 4, "b instance": 16}
        assert count_masks(PaintedSet()) == {}
