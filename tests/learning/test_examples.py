from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from lidiv_backend.errors import DataError
from lidiv_backend.learning.examples import EXAMPLES, draw_examples, read_examples, read_picture
from lidiv_backend.records import AnnotatedImage, choose_images
from tests import tiny
from tests.fake_engine import FakeEngine


class Damaged(tiny.PaintedSet):
    def __getitem__(self, index: int) -> AnnotatedImage:
        raise DataError("The image is not there.")


def draw(folder: Path, images: Any) -> None:
    draw_examples(FakeEngine(radii=(0.2,)), FakeEngine(radii=(0.05,)), images, folder)


def test_before_and_after_are_told_apart(tmp_path: Path) -> None:
    images = tiny.PaintedSet(length=9, height=60, width=120)
    draw(tmp_path, images)
    examples = read_examples(tmp_path)
    assert [example.number for example in examples] == list(range(1, EXAMPLES + 1))
    for example in examples:
        assert (example.height, example.width) == (240, 480)
        # The larger disk fits these objects better; neither fits exactly.
        assert 0 < example.before < example.after < 1
        index = choose_images(len(images), EXAMPLES)[example.number - 1]
        plain = cv2.resize(images[index].rgb, (480, 240)).astype(int)
        tinted = {}
        for name in ("meant", "before", "after"):
            content = read_picture(tmp_path, example.number, name)
            assert content is not None
            picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
            changed = np.abs(picture.astype(int) - plain[:, :, ::-1]).max(axis=2) > 40
            tinted[name] = np.count_nonzero(changed)
        assert tinted["after"] > tinted["before"]


@pytest.mark.parametrize("images", [tiny.PaintedSet(length=0), Damaged(length=3)])
def test_pictures_never_make_a_run_fail(tmp_path: Path, images: tiny.PaintedSet) -> None:
    draw(tmp_path, images)
    assert read_examples(tmp_path) == ()
    draw(tmp_path / "file" / "in the way", tiny.PaintedSet())
    (tmp_path / "full").write_text("")
    draw(tmp_path / "full", tiny.PaintedSet())
    assert read_examples(tmp_path / "full") == ()


def test_only_pictures_are_read(tmp_path: Path) -> None:
    draw(tmp_path, tiny.PaintedSet(length=1))
    assert read_picture(tmp_path, 1, "after")
    assert read_picture(tmp_path, 2, "after") is None
    assert read_picture(tmp_path, 1, "../../secret") is None
    (tmp_path / "examples" / "examples.json").write_text('[{"number": 1}]')
    assert read_examples(tmp_path) == ()
