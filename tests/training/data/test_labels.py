import numpy as np
import pytest
from numpy.typing import NDArray

from lidiv_backend.errors import DataError
from lidiv_backend.training.data import MaskConvention, objects_from_labels


def labels(*rows: list[int]) -> NDArray[np.int32]:
    return np.array(rows, dtype=np.int32)


@pytest.mark.parametrize("value", [1, 2, 128, 255, 65535])
def test_a_single_value_is_one_object(value: int) -> None:
    (item,) = objects_from_labels(labels([0, value, value]), name="a")
    assert item.name == "a"
    assert item.ignore is None
    assert item.mask.tolist() == [[False, True, True]]


def test_grabcut_masks_are_recognised() -> None:
    (item,) = objects_from_labels(labels([0, 128, 255]), name="a")
    assert item.mask.tolist() == [[False, False, True]]
    assert item.ignore is not None
    assert item.ignore.tolist() == [[False, True, False]]


def test_label_maps_are_recognised() -> None:
    items = objects_from_labels(labels([0, 1, 3], [3, 900, 0]), name="a")
    assert [item.name for item in items] == ["a:1", "a:3", "a:900"]
    assert items[1].mask.tolist() == [[False, False, True], [True, False, False]]


def test_void_is_recognised_behind_consecutive_values() -> None:
    items = objects_from_labels(labels([0, 1, 2, 2, 255]), name="a")
    assert [item.name for item in items] == ["a:1", "a:2"]
    assert all(item.ignore is not None and item.ignore[0, 4] for item in items)
    items = objects_from_labels(labels([0, 1, 7, 7, 255]), name="a")
    assert [item.name for item in items] == ["a:1", "a:7", "a:255"]


def test_soft_edges_are_no_objects() -> None:
    (item,) = objects_from_labels(labels([0, 90, 200, 255, 255, 255, 255]), name="a")
    assert item.mask.tolist() == [[False, False, True, True, True, True, True]]


def test_lossy_masks_are_no_label_maps() -> None:
    (item,) = objects_from_labels(labels([0, 3, 250, 251, 2, 1]), name="a", lossy=True)
    assert item.mask.tolist() == [[False, False, True, True, False, False]]


def test_a_convention_overrules_the_rules() -> None:
    grabcut = labels([0, 128, 255])
    items = objects_from_labels(grabcut, name="a", convention=MaskConvention.LABELS)
    assert [item.name for item in items] == ["a:128", "a:255"]
    (item,) = objects_from_labels(grabcut, name="a", convention=MaskConvention.BINARY)
    assert item.mask.tolist() == [[False, True, True]]
    (item,) = objects_from_labels(labels([0, 128]), name="a", convention=MaskConvention.TRIMAP)
    assert not item.mask.any()
    items = objects_from_labels(labels([0, 7, 255]), name="a", convention=MaskConvention.VOID)
    assert [item.name for item in items] == ["a:7"]


def test_black_is_an_empty_object() -> None:
    (item,) = objects_from_labels(labels([0, 0]), name="a")
    assert not item.mask.any()


def test_packed_colours_are_objects() -> None:
    items = objects_from_labels(labels([0, 0xFF0000, 0x00FF00]), name="a")
    assert [item.mask.tolist() for item in items] == [
        [[False, False, True]],
        [[False, True, False]],
    ]


def test_a_photo_is_no_label_map() -> None:
    photo = np.random.default_rng(0).integers(0, 1 << 24, (100, 100)).astype(np.int32)
    with pytest.raises(DataError, match="no label map"):
        objects_from_labels(photo, name="a")
