import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from scipy.ndimage import label as scipy_label
from scipy.stats import chisquare

from lidiv_backend.clicks import Click
from lidiv_backend.errors import DataError
from lidiv_backend.training.simulation import (
    DosProtocol,
    boundary_distance,
    centre_click,
    distance_to,
    dos_clicks,
    next_training_click,
    sample_first_click,
    sample_next_click,
    shared_click,
)

Region = NDArray[np.bool_]


def masks(largest: int = 24) -> st.SearchStrategy[Region]:
    sides = st.tuples(st.integers(1, largest), st.integers(1, largest))
    return sides.flatmap(lambda shape: arrays(np.bool_, shape))


@st.composite
def mask_pairs(draw: st.DrawFn) -> tuple[Region, Region, Region]:
    """A truth, a prediction and an ignore region of one size."""
    shape = draw(st.tuples(st.integers(1, 16), st.integers(1, 16)))
    truth, prediction, ignore = (draw(arrays(np.bool_, shape)) for _ in range(3))
    return truth, prediction, ignore


def exact_distance(region: Region) -> NDArray[np.float64]:
    """Independent of OpenCV: everything beyond the edge is outside."""
    return distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]  # type: ignore[no-any-return]


def blob(seed: int, size: int = 96) -> Region:
    """A smooth random shape."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size]
    mask = np.zeros((size, size), dtype=bool)
    for _ in range(3):
        y, x, radius = (
            rng.uniform(0.2, 0.8) * size,
            rng.uniform(0.2, 0.8) * size,
            rng.uniform(4, 24),
        )
        mask |= (rows - y) ** 2 + (columns - x) ** 2 <= radius**2
    return mask


def at(mask: Region, click: Click) -> bool:
    assert click.x == int(click.x)
    assert click.y == int(click.y)
    return bool(mask[int(click.y), int(click.x)])


class TestBoundaryDistance:
    @given(masks())
    def test_equals_the_exact_transform(self, region: Region) -> None:
        distance = boundary_distance(region)
        assert distance.dtype == np.float32
        np.testing.assert_array_equal(distance, exact_distance(region).astype(np.float32))

    @pytest.mark.parametrize("seed", range(4))
    def test_equals_the_exact_transform_on_large_regions(self, seed: int) -> None:
        region = blob(seed, size=480)
        expected = exact_distance(region).astype(np.float32)
        np.testing.assert_array_equal(boundary_distance(region), expected)
        threads = cv2.getNumThreads()
        try:
            cv2.setNumThreads(1)
            np.testing.assert_array_equal(boundary_distance(region), expected)
        finally:
            cv2.setNumThreads(threads)

    def test_the_edge_of_the_image_is_boundary(self) -> None:
        assert boundary_distance(np.ones((5, 5), dtype=bool)).tolist() == [
            [1, 1, 1, 1, 1],
            [1, 2, 2, 2, 1],
            [1, 2, 3, 2, 1],
            [1, 2, 2, 2, 1],
            [1, 1, 1, 1, 1],
        ]

    @given(masks())
    def test_distance_to_a_region_ignores_the_edge(self, region: Region) -> None:
        region[0, 0] = True
        expected = distance_transform_edt(~region).astype(np.float32)
        np.testing.assert_array_equal(distance_to(region), expected)

    def test_takes_views(self) -> None:
        region = blob(0)
        np.testing.assert_array_equal(
            boundary_distance(region.T[::2, ::-1]), boundary_distance(region.T[::2, ::-1].copy())
        )


class TestEquation8:
    def test_first_click_follows_the_distances(self) -> None:
        mask = np.zeros((6, 7), dtype=bool)
        mask[1:6, 1:6] = True  # touches the lower edge of the image
        expected = exact_distance(mask)
        drawn = np.zeros(mask.shape)
        rng = np.random.default_rng(3)
        for _ in range(6000):
            click = sample_first_click(mask, rng)
            assert click.positive
            drawn[int(click.y), int(click.x)] += 1
        assert drawn[~mask].sum() == 0
        weights = expected[mask] / expected[mask].sum()
        assert chisquare(drawn[mask], 6000 * weights).pvalue > 1e-3

    def test_later_clicks_follow_the_distances_of_all_errors_together(self) -> None:
        truth = np.zeros((7, 9), dtype=bool)
        truth[1:6, 1:5] = True
        prediction = np.zeros((7, 9), dtype=bool)
        prediction[1:6, 3:8] = True
        wrong = truth != prediction
        expected = exact_distance(wrong)
        expected[3, 1] = 0  # clicked before
        drawn = np.zeros(truth.shape)
        rng = np.random.default_rng(4)
        for _ in range(6000):
            click = sample_next_click(truth, prediction, [Click(x=1, y=3)], rng)
            assert click is not None
            assert click.positive == at(truth, click)
            drawn[int(click.y), int(click.x)] += 1
        possible = expected > 0
        assert drawn[~possible].sum() == 0
        weights = expected[possible] / expected[possible].sum()
        assert chisquare(drawn[possible], 6000 * weights).pvalue > 1e-3

    def test_missed_and_added_pixels_that_touch_are_one_region(self) -> None:
        # Ten wrong pixels in a row of the only line: half missed, half added.
        truth = np.array([[True] * 5 + [False] * 5])
        drawn = {
            sample_next_click(truth, ~truth, [], np.random.default_rng(seed)) for seed in range(200)
        }
        assert {click.positive for click in drawn if click} == {True, False}

    def test_an_empty_mask_is_refused(self) -> None:
        mask = np.zeros((4, 4), dtype=bool)
        with pytest.raises(DataError):
            sample_first_click(mask, np.random.default_rng(0))
        mask[1, 1] = True
        with pytest.raises(DataError):
            sample_first_click(mask, np.random.default_rng(0), ignore=mask)


class TestErrorDrivenClicks:
    """What holds for every rule that places a click on an error."""

    @staticmethod
    def place(
        rule: str,
        truth: Region,
        prediction: Region,
        clicks: list[Click],
        seed: int,
        ignore: Region | None = None,
    ) -> Click | None:
        rng = np.random.default_rng(seed)
        if rule == "sampled":
            return sample_next_click(truth, prediction, clicks, rng, ignore)
        if rule == "training":
            return next_training_click(truth, prediction, clicks, rng, ignore)
        return centre_click(truth, prediction, clicks, ignore)

    @pytest.mark.parametrize("rule", ["sampled", "centre", "training"])
    @settings(max_examples=60)
    @given(pair=mask_pairs(), seed=st.integers(0, 2**32))
    def test_click_every_error_once_and_nothing_else(
        self, rule: str, pair: tuple[Region, Region, Region], seed: int
    ) -> None:
        truth, prediction, ignore = pair
        wrong = (truth != prediction) & ~ignore
        clicks: list[Click] = []
        while (click := self.place(rule, truth, prediction, clicks, seed, ignore)) is not None:
            assert at(wrong, click)
            assert click.positive == at(truth, click)
            clicks.append(click)
            assert len(clicks) <= wrong.sum()
        # Nothing was clicked twice, and None came only when nothing was left.
        assert {(int(c.y), int(c.x)) for c in clicks} == set(
            zip(*(axis.tolist() for axis in np.nonzero(wrong)), strict=True)
        )

    @pytest.mark.parametrize("rule", ["sampled", "centre", "training"])
    @given(pair=mask_pairs(), seed=st.integers(0, 2**32))
    def test_same_seed_same_click(
        self, rule: str, pair: tuple[Region, Region, Region], seed: int
    ) -> None:
        first, second = (self.place(rule, *pair[:2], [], seed, pair[2]) for _ in range(2))
        assert first == second

    @pytest.mark.parametrize("rule", ["sampled", "centre", "training"])
    def test_inputs_are_left_alone(self, rule: str) -> None:
        truth, prediction, ignore = blob(0), blob(1), blob(2)
        before = truth.copy(), prediction.copy(), ignore.copy()
        self.place(rule, truth, prediction, [Click(x=3, y=4)], 0, ignore)
        for array, copy in zip((truth, prediction, ignore), before, strict=True):
            np.testing.assert_array_equal(array, copy)

    @pytest.mark.parametrize("rule", ["sampled", "training"])
    def test_other_seeds_give_other_clicks(self, rule: str) -> None:
        clicks = {self.place(rule, blob(0), blob(1), [], seed) for seed in range(10)}
        assert len(clicks) > 5


class TestCentreClick:
    def test_goes_to_the_centre_of_the_larger_error(self) -> None:
        truth = np.zeros((30, 40), dtype=bool)
        truth[5:14, 5:14] = True
        prediction = np.zeros((30, 40), dtype=bool)
        prediction[10:25, 20:35] = True
        click = centre_click(truth, prediction, [])
        assert click == Click(x=27, y=17, positive=False)
        assert centre_click(truth, np.zeros_like(truth), []) == Click(x=9, y=9, positive=True)

    def test_larger_is_by_depth_not_by_area(self) -> None:
        truth = np.zeros((20, 100), dtype=bool)
        truth[2:4] = True  # 200 pixels, 2 deep
        prediction = np.zeros((20, 100), dtype=bool)
        prediction[10:15, 10:15] = True  # 25 pixels, 5 deep
        click = centre_click(truth, prediction, [])
        assert click == Click(x=12, y=12, positive=False)

    def test_missed_and_added_are_separate_regions(self) -> None:
        # Together they would be one square with its peak on the border between them.
        truth = np.zeros((13, 20), dtype=bool)
        truth[1:12, 1:8] = True
        prediction = np.zeros((13, 20), dtype=bool)
        prediction[1:12, 8:19] = True
        assert centre_click(truth, prediction, []) == Click(x=13, y=6, positive=False)

    def test_equal_peaks_are_taken_in_row_major_order(self) -> None:
        truth = np.zeros((9, 20), dtype=bool)
        truth[4:7, 2:5] = True
        truth[3:6, 12:15] = True
        assert centre_click(truth, np.zeros_like(truth), []) == Click(x=13, y=4)

    def test_a_clicked_peak_gives_way_to_the_next(self) -> None:
        truth = np.zeros((9, 9), dtype=bool)
        truth[2:7, 2:7] = True
        first = centre_click(truth, np.zeros_like(truth), [])
        assert first == Click(x=4, y=4)
        second = centre_click(truth, np.zeros_like(truth), [first])
        assert second == Click(x=3, y=3)

    def test_ignored_pixels_are_boundary(self) -> None:
        truth = np.ones((5, 11), dtype=bool)
        ignore = np.zeros_like(truth)
        ignore[:, :6] = True
        assert centre_click(truth, np.zeros_like(truth), [], ignore) == Click(x=8, y=2)


class TestTrainingClick:
    @settings(max_examples=40)
    @given(seed=st.integers(0, 2**32), first=st.integers(0, 30), second=st.integers(31, 60))
    def test_lies_in_the_inner_part_of_the_largest_error(
        self, seed: int, first: int, second: int
    ) -> None:
        truth, prediction = blob(first), blob(second)
        click = next_training_click(truth, prediction, [], np.random.default_rng(seed))
        assert click is not None
        error = (truth & ~prediction) if click.positive else (prediction & ~truth)
        components, _ = scipy_label(error, structure=np.ones((3, 3)))
        own = components == components[int(click.y), int(click.x)]
        for other in (truth & ~prediction, prediction & ~truth):
            numbered, _ = scipy_label(other, structure=np.ones((3, 3)))
            assert own.sum() >= np.bincount(numbered.ravel())[1:].max(initial=0)
        distance = exact_distance(own)
        assert distance[int(click.y), int(click.x)] > distance.max() / 2


class TestDosClicks:
    @staticmethod
    def distance_to(mask: Region) -> NDArray[np.float64]:
        return distance_transform_edt(~mask)  # type: ignore[no-any-return]

    @given(st.integers(0, 2**32), st.integers(0, 30), st.lists(st.integers(31, 60), max_size=3))
    def test_distances_and_numbers(self, seed: int, own: int, others: list[int]) -> None:
        mask, other_objects = blob(own), [blob(number) for number in others]
        protocol = DosProtocol()
        clicks = dos_clicks(mask, other_objects, np.random.default_rng(seed))
        positives = [click for click in clicks if click.positive]
        negatives = [click for click in clicks if not click.positive]
        assert clicks == positives + negatives
        assert 1 <= len(positives) <= protocol.max_positives
        assert len(negatives) <= max(protocol.max_background, protocol.max_around)
        inside, outside = exact_distance(mask), self.distance_to(mask)
        deepest = inside.max()
        for click in positives:
            depth = inside[int(click.y), int(click.x)]
            assert depth >= 5 if deepest >= 5 else depth > deepest / 2
        covered = np.logical_or.reduce([np.zeros_like(mask), *other_objects])
        for click in negatives:
            away = outside[int(click.y), int(click.x)]
            assert away >= 5
            assert away <= 40 or at(covered, click)
        for group in (positives, negatives):
            for index, one in enumerate(group):
                for two in group[:index]:
                    assert np.hypot(one.x - two.x, one.y - two.y) >= 10

    @given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 4))
    def test_small_objects_still_get_a_click(self, seed: int, height: int, width: int) -> None:
        mask = np.zeros((20, 20), dtype=bool)
        mask[3 : 3 + height, 7 : 7 + width] = True
        clicks = dos_clicks(mask, [], np.random.default_rng(seed))
        assert clicks[0].positive
        assert at(mask, clicks[0])

    def test_each_strategy_happens(self) -> None:
        mask = np.zeros((200, 200), dtype=bool)
        mask[80:120, 80:120] = True
        far = np.zeros_like(mask)
        far[5:25, 170:195] = True  # more than 40 pixels away from the object
        away = self.distance_to(mask)
        seen = {"far": 0, "ring": 0, "band": 0}
        protocol = DosProtocol(single_click=0)
        for seed in range(100):
            negatives = [
                click
                for click in dos_clicks(mask, [far], np.random.default_rng(seed), protocol=protocol)
                if not click.positive
            ]
            distances = [away[int(click.y), int(click.x)] for click in negatives]
            if any(at(far, click) for click in negatives):
                assert all(at(far, click) for click in negatives)
                assert len(negatives) <= protocol.max_others
                seen["far"] += 1
            elif len(negatives) >= 5 and max(distances) < 10:
                # Spread evenly: on more than two of the four sides.
                sides = {(click.x < 80, click.x >= 120, click.y < 80) for click in negatives}
                assert len(sides) > 2
                seen["ring"] += 1
            elif negatives:
                seen["band"] += 1
        assert min(seen.values()) >= 10

    def test_the_single_click_is_as_common_as_asked(self) -> None:
        mask = blob(0)

        def rate(single_click: float) -> float:
            rng = np.random.default_rng(0)
            protocol = DosProtocol(single_click=single_click)
            draws = [dos_clicks(mask, [], rng, protocol=protocol) for _ in range(400)]
            return float(np.mean([len(clicks) == 1 for clicks in draws]))

        assert rate(1.0) == 1.0
        # The other draws have one click by chance.
        assert rate(0.5) == pytest.approx(0.5 + 0.5 * rate(0.0), abs=0.08)

    def test_same_seed_same_clicks(self) -> None:
        first, second = (dos_clicks(blob(1), [blob(2)], np.random.default_rng(7)) for _ in range(2))
        assert first == second

    @given(st.integers(0, 2**32))
    def test_ignored_pixels_are_not_clicked(self, seed: int) -> None:
        mask, ignore = blob(3), blob(4)
        for click in dos_clicks(mask, [blob(5)], np.random.default_rng(seed), ignore=ignore):
            assert not at(ignore, click)

    def test_an_object_that_fills_the_image_gets_positive_clicks_only(self) -> None:
        mask = np.ones((40, 40), dtype=bool)
        for seed in range(20):
            clicks = dos_clicks(mask, [mask], np.random.default_rng(seed))
            assert all(click.positive for click in clicks)

    def test_an_empty_mask_is_refused(self) -> None:
        with pytest.raises(DataError):
            dos_clicks(np.zeros((9, 9), dtype=bool), [], np.random.default_rng(0))


def test_a_click_is_shared_with_an_object_that_is_under_it() -> None:
    coat = np.zeros((20, 30), dtype=bool)
    coat[5:15, 8:20] = True
    beside, inside = Click(x=2, y=2), Click(x=9.4, y=14.4)
    negative = Click(x=12, y=9, positive=False)
    rng = np.random.default_rng(0)
    assert shared_click(coat, [beside, inside, negative], rng) == inside
    assert shared_click(coat, [beside, negative], rng) is None
    assert shared_click(coat, [], rng) is None
    # Recorded clicks may lie half a pixel beyond the outermost middles.
    edge = Click(x=29.5, y=19.5)
    assert shared_click(np.ones_like(coat), [edge], rng) == edge
