"""Which images of a data set are taken."""

from __future__ import annotations

from lidiv_backend.errors import DataError
from lidiv_backend.records import AnnotatedImage, choose_images, some_images
from tests.tiny import PaintedSet


def test_chosen_images_are_spread_nested_and_distinct() -> None:
    assert choose_images(160, 40) == list(range(0, 160, 4))
    assert choose_images(5, None) == choose_images(5, 9) == [0, 1, 2, 3, 4]
    assert choose_images(0, 3) == []
    for length in (1, 7, 50, 161):
        previous: set[int] = set()
        for limit in range(length + 1):
            chosen = choose_images(length, limit)
            assert len(set(chosen)) == limit
            assert previous <= set(chosen) <= set(range(length))
            previous = set(chosen)


class Torn(PaintedSet):
    """Its second image cannot be read."""

    def __getitem__(self, index: int) -> AnnotatedImage:
        if index == 1:
            raise DataError("Torn.")
        return super().__getitem__(index)


def test_images_that_cannot_be_read_are_left_out() -> None:
    assert [image.name for image in some_images(Torn(length=4), 9)] == ["0", "2", "3"]
    assert [image.name for image in some_images(Torn(length=4), 2)] == ["0", "2"]
