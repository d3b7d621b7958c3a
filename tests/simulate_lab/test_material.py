from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from lidiv_backend.errors import DataError
from lidiv_backend.simulate_lab.material import divide, write_images
from tests.tiny import PaintedSet


def test_what_is_measured_is_never_annotated() -> None:
    images = PaintedSet(length=10, count=3)
    material = divide(images, annotated=6, held_back=9, objects=2, measured=1, seed=0)
    assert (len(material.annotated), len(material.held_back)) == (6, 4)
    names = [[part[i].name for i in range(len(part))] for part in vars(material).values()]
    assert len({*names[0], *names[1]}) == 10
    assert {len(material.annotated[i].objects) for i in range(6)} == {2}
    assert {len(material.held_back[i].objects) for i in range(4)} == {1}
    again = divide(images, annotated=6, held_back=9, objects=2, measured=1, seed=0)
    assert [again.annotated[i].name for i in range(6)] == names[0]
    other = divide(images, annotated=6, held_back=9, objects=2, measured=1, seed=1)
    assert [other.annotated[i].name for i in range(6)] != names[0]


def test_too_few_images_are_refused() -> None:
    with pytest.raises(DataError, match="none would be left"):
        divide(PaintedSet(length=6), annotated=6, held_back=5, objects=2, measured=1, seed=0)


def test_the_files_are_the_images(tmp_path: Path) -> None:
    material = divide(PaintedSet(length=5), annotated=3, held_back=2, objects=2, measured=1, seed=0)
    write_images(material.annotated, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    for index in range(3):
        read = cv2.imread(str(tmp_path / material.annotated.file_name(index)))
        assert read is not None
        np.testing.assert_array_equal(read[..., ::-1], material.annotated[index].rgb)
