import numpy as np
import pytest
from numpy.typing import NDArray

from lidiv_backend.records import AnnotatedImage, ObjectMask
from lidiv_backend.training.data import MergedSet, with_merged


def box(top: int, left: int, bottom: int, right: int) -> NDArray[np.bool_]:
    mask = np.zeros((40, 60), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def image(*masks: NDArray[np.bool_], label: str = "cat") -> AnnotatedImage:
    return AnnotatedImage(
        name="i",
        rgb=np.zeros((40, 60, 3), dtype=np.uint8),
        objects=tuple(
            ObjectMask(name=str(number), mask=mask, label=label)
            for number, mask in enumerate(masks)
        ),
        problems=("kept",),
    )


def merged(source: AnnotatedImage, seed: int = 0, **options: float) -> list[ObjectMask]:
    result = with_merged(source, np.random.default_rng(seed), **options)  # type: ignore[arg-type]
    assert result.objects[: len(source.objects)] == source.objects
    assert result.problems == source.problems
    return list(result.objects[len(source.objects) :])


def test_touching_objects_are_merged() -> None:
    first, second = box(5, 5, 15, 15), box(5, 15, 15, 25)
    (item,) = merged(image(first, second), count=3)
    assert item.name == "0+1"
    assert item.kind == "merged"
    assert item.label == "cat"
    np.testing.assert_array_equal(item.mask, first | second)


@pytest.mark.parametrize(("distance", "gap", "neighbours"), [(4, 4, 1), (5, 4, 0), (5, 5, 1)])
def test_the_gap_decides_who_is_a_neighbour(distance: int, gap: int, neighbours: int) -> None:
    # Pixel centres of the edges are `distance` apart.
    source = image(box(5, 5, 15, 16), box(5, 15 + distance, 15, 30))
    assert len(merged(source, gap=gap)) == neighbours


def test_distance_is_euclidean() -> None:
    source = image(box(5, 5, 10, 10), box(13, 13, 20, 20))  # corners 4 and 4 apart
    assert not merged(source, gap=5)
    assert merged(source, gap=6)


def test_nested_objects_are_not_merged() -> None:
    assert not merged(image(box(5, 5, 30, 30), box(10, 10, 15, 15)))
    assert merged(image(box(5, 5, 15, 15), box(5, 11, 15, 21)))


def test_groups_are_chains_of_neighbours_and_differ() -> None:
    row = [box(5, left, 15, left + 8) for left in (2, 11, 20, 40)]
    for seed in range(20):
        items = merged(image(*row), seed, gap=2, count=5)
        names = {item.name for item in items}
        assert names <= {"0+1", "1+2", "0+1+2"}
        assert len(names) == len(items)
        for item in items:
            parts = [row[int(number)] for number in item.name.split("+")]
            np.testing.assert_array_equal(item.mask, np.logical_or.reduce(parts))


def test_ignored_borders_stay_ignored_outside_the_union() -> None:
    masks = box(5, 5, 15, 15), box(5, 16, 15, 26)
    objects = tuple(
        ObjectMask(name=str(number), mask=mask, ignore=box(5, 15, 15, 17) & ~mask)
        for number, mask in enumerate(masks)
    )
    source = AnnotatedImage(name="i", rgb=image().rgb, objects=objects)
    (item,) = merged(source)
    assert item.ignore is not None
    np.testing.assert_array_equal(item.ignore, box(5, 15, 15, 16))


class One:
    name = "one"

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> AnnotatedImage:
        return image(*(box(5, left, 15, left + 8) for left in range(2, 50, 9)))


def test_a_set_is_the_same_in_every_run() -> None:
    def names(seed: int) -> list[list[str]]:
        data = MergedSet(One(), seed=seed, count=2)
        return [[item.name for item in data[index].objects] for index in range(len(data))]

    assert names(1) == names(1)
    assert names(1) != names(2)
    assert len(names(1)[0]) == 8
