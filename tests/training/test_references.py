"""What the images of a training are like is noted beside the weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lidiv_backend.errors import DataError
from lidiv_backend.model import load_model
from lidiv_backend.predictor import Predictor
from lidiv_backend.records import AnnotatedImage
from lidiv_backend.training import references
from lidiv_backend.training.references import describe_images, write_references
from tests import tiny

ABOUT = tiny.description(pyramid=True)


class Damaged(tiny.PaintedSet):
    """A data set of which some images cannot be read."""

    bad: tuple[int, ...] = ()

    def __getitem__(self, index: int) -> AnnotatedImage:
        if index in self.bad:
            raise DataError("It cannot be read.")
        return super().__getitem__(index)


@pytest.fixture(autouse=True)
def _random_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    class Random(Predictor):
        @classmethod
        def from_pretrained(cls, *_: object, **__: object) -> Predictor:
            return tiny.predictor(ABOUT)

    monkeypatch.setattr(references, "Predictor", Random)


def test_they_are_spread_over_the_data_set() -> None:
    images = tiny.PaintedSet(length=9)
    found = describe_images(tiny.predictor(ABOUT), images, limit=3)
    assert found is not None
    assert images.read == [0, 4, 8]
    expected = [tiny.predictor(ABOUT).describe(images[index].rgb) for index in (0, 4, 8)]
    torch.testing.assert_close(found, torch.stack(expected))


def test_they_are_written_beside_the_weights(tmp_path: Path) -> None:
    folder = tiny.saved(tmp_path / "x", ABOUT)
    before = load_model(folder)
    assert write_references(folder, tiny.PaintedSet(length=4)) == 4
    after = load_model(folder)
    assert after.version == before.version
    assert after.references is not None
    assert after.references.shape == (4, 1216)
    assert after.description == before.description
    tensors = after.proposal.state_dict()
    assert all(torch.equal(t, tensors[name]) for name, t in before.proposal.state_dict().items())


def test_images_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    folder, images = tiny.saved(tmp_path / "x", ABOUT), Damaged(length=3)
    images.bad = (1,)
    assert write_references(folder, images) == 2
    images.bad = (0, 1, 2)
    with pytest.raises(DataError, match="No image of painted"):
        write_references(folder, images)


def test_without_an_encoder_nothing_is_written(tmp_path: Path) -> None:
    folder = tiny.saved(tmp_path / "x")
    assert write_references(folder, tiny.PaintedSet()) == 0
    assert load_model(folder).references is None
