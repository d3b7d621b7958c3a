from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lidiv_backend.clicks import Click
from lidiv_backend.errors import DataError, LidivError, WeightsError
from lidiv_backend.learning import photographs as module
from lidiv_backend.learning.gate import compare, is_worse
from lidiv_backend.learning.photographs import OwnMasks, Pasted, photographs
from lidiv_backend.model import load_model, save_model
from lidiv_backend.predictor import Predictor
from tests.fake_engine import FakeEngine
from tests.tiny import Drawn

HEIGHT, WIDTH = 120, 160
#: Each photograph is of one colour, and so is all that is cut out of it.
COLOURS = ((200, 30, 30), (30, 200, 30), (30, 30, 200), (180, 180, 20))
Answer = Callable[[Click], tuple[NDArray[np.bool_], float]]


class Answers(Drawn):
    """Answers a click as a test says, with a mask and the IoU that is expected of it."""

    version = "answers"
    expects_iou = True

    def __init__(self, answer: Answer) -> None:
        self.answer = answer

    def draw(
        self, image: NDArray[np.uint8], clicks: Sequence[Click]
    ) -> tuple[NDArray[np.bool_], float]:
        return self.answer(clicks[-1])


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    paths = []
    for number, colour in enumerate(COLOURS):
        path = tmp_path / f"photo{number}.png"
        cv2.imwrite(str(path), np.full((HEIGHT, WIDTH, 3), colour[::-1], np.uint8))
        paths.append(path)
    return paths


def box(top: int, bottom: int, left: int, right: int) -> NDArray[np.bool_]:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


BOX = box(30, 70, 40, 90)


def test_masks_that_the_model_finds_again_and_again_are_one_object(photos: list[Path]) -> None:
    (item,) = OwnMasks(Answers(lambda _: (BOX, 0.9)), photos)[0].objects
    np.testing.assert_array_equal(item.mask, BOX)


def test_holes_are_filled_and_crumbs_are_left(photos: list[Path]) -> None:
    untidy = BOX & ~box(45, 50, 60, 65) | box(100, 102, 5, 7)
    (item,) = OwnMasks(Answers(lambda _: (untidy, 0.9)), photos)[0].objects
    np.testing.assert_array_equal(item.mask, BOX)


@pytest.mark.parametrize(
    ("mask", "score"),
    [
        pytest.param(BOX, 0.4, id="not sure"),
        pytest.param(box(0, 120, 0, 80), 0.9, id="half of the photograph"),
        pytest.param(box(50, 54, 50, 54), 0.9, id="a few pixels"),
        pytest.param(box(20, 40, 20, 60) | box(60, 80, 20, 60), 0.9, id="in two pieces"),
        pytest.param(box(0, 20, 0, 160), 0.9, id="along the edge"),
        pytest.param(box(0, 0, 0, 0), 0.9, id="nothing"),
    ],
)
def test_what_is_no_object_is_left_out(
    photos: list[Path], mask: NDArray[np.bool_], score: float
) -> None:
    own = OwnMasks(Answers(lambda _: (mask, score)), photos)
    with pytest.raises(DataError, match="sure of nothing in photo0"):
        own[0]
    # It can still be pasted into.
    assert own.photo(0).objects == ()
    with pytest.raises(DataError, match="nothing to paste"):
        Pasted(own, length=4)[0]


def test_a_pasted_object_is_where_its_mask_says_and_comes_from_elsewhere(
    photos: list[Path],
) -> None:
    pasted = Pasted(OwnMasks(FakeEngine(), photos), length=8)
    seen = set()
    for index in range(len(pasted)):
        image = pasted[index]
        ground = COLOURS[index % len(COLOURS)]
        together = np.zeros((HEIGHT, WIDTH), dtype=int)
        for item in image.objects:
            together += item.mask
            # The middle of each is of another photograph's colour, its surroundings are not.
            inside = cv2.erode(item.mask.astype(np.uint8), np.ones((5, 5))).astype(bool)
            (colour,) = {tuple(pixel) for pixel in image.rgb[inside].tolist()}
            assert colour in COLOURS
            assert colour != ground
            seen.add(colour)
        assert len(image.objects) >= 2
        assert together.max() == 1
        apart = cv2.dilate((together > 0).astype(np.uint8), np.ones((5, 5))) == 0
        assert {tuple(pixel) for pixel in image.rgb[apart].tolist()} == {ground}
    assert seen == set(COLOURS)
    assert len({item.name for index in range(8) for item in pasted[index].objects}) == sum(
        len(pasted[index].objects) for index in range(8)
    )


def test_pasting_is_the_same_every_time(photos: list[Path]) -> None:
    first, second = (Pasted(OwnMasks(FakeEngine(), photos), length=2)[1] for _ in range(2))
    np.testing.assert_array_equal(first.rgb, second.rgb)
    other = Pasted(OwnMasks(FakeEngine(), photos), length=2, seed=1)[1]
    assert not np.array_equal(first.rgb, other.rgb)


def test_what_is_replayed_is_not_asked_about(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    base, replayed = photographs(FakeEngine(), tmp_path / "photos", images=8)
    assert isinstance(base.images, Pasted)
    assert isinstance(replayed, OwnMasks)
    assert len(base.images) == 8
    asked = {base.images[index].name.split()[0] for index in range(8)}
    trained = {replayed[index].name for index in range(len(replayed))}
    assert len(asked) == len(trained) == 4
    assert asked.isdisjoint(trained)
    assert "LIDIV_BASE_DATA is not set" in base.about


def test_without_photographs_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: Path) -> list[Path]:
        raise LidivError("scikit-image is not installed.")

    monkeypatch.setattr(module, "write_photos", missing)
    base, replayed = photographs(FakeEngine(), tmp_path, images=8)
    assert replayed is None
    assert base.images is None
    assert "was not measured" in base.about
    assert base.about.endswith("(scikit-image is not installed)")


@pytest.mark.soak
@pytest.mark.parametrize(("damage", "worse"), [(0.0, False), (0.6, True)])
def test_a_preset_that_lost_something_is_found_out(
    tmp_path: Path, damage: float, worse: bool
) -> None:
    """Weights of f, each layer stirred by a part of its own spread, against the real preset."""
    pytest.importorskip("skimage")
    model = load_model("default")
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for weights in model.proposal.parameters():
            if weights.ndim > 1:
                noise = torch.randn(weights.shape, generator=generator)
                weights.add_(damage * weights.std() * noise)
    assert model.selection is not None
    description = dataclasses.replace(model.description, name="stirred")
    save_model(
        tmp_path / "stirred",
        description,
        model.proposal.state_dict(),
        model.selection.state_dict(),
    )
    try:
        preset = Predictor.from_pretrained("default", device="cpu")
    except WeightsError as error:
        pytest.skip(str(error))
    candidate = Predictor.from_pretrained(tmp_path / "stirred", device="cpu")
    base, _ = photographs(preset, tmp_path / "photos", images=12)
    assert base.images is not None
    found = compare(candidate, preset, base.images, images=12, objects=3)
    assert found is not None
    # Otherwise it would not be known by what.
    assert found.in_use < 2
    assert is_worse(found) == worse
