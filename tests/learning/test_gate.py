from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from lidiv_backend.clicks import Click
from lidiv_backend.errors import DataError
from lidiv_backend.evaluation.measures import Interval
from lidiv_backend.learning import gate
from lidiv_backend.learning.gate import (
    BaseSet,
    Comparison,
    Verdict,
    compare,
    is_worse,
    judge,
    with_masks_of,
)
from lidiv_backend.records import AnnotatedImage
from tests.tiny import Drawn, PaintedSet, painted_alike


class Painter(Drawn):
    """Knows a painted object after so many clicks; before, it shows half of it."""

    def __init__(self, clicks: int) -> None:
        self.clicks = clicks
        self.version = f"painter-{clicks}"

    def draw(
        self, image: NDArray[np.uint8], clicks: Sequence[Click]
    ) -> tuple[NDArray[np.bool_], float]:
        mask = painted_alike(image, clicks[0])
        if len(clicks) < self.clicks:
            # The upper half, so that more clicks are possible.
            mask &= np.arange(mask.shape[0])[:, None] < np.flatnonzero(mask.any(1)).mean()
        return mask, 1.0


class Fails(Painter):
    def draw(
        self, image: NDArray[np.uint8], clicks: Sequence[Click]
    ) -> tuple[NDArray[np.bool_], float]:
        raise ZeroDivisionError


class Half(PaintedSet):
    """Every second image cannot be used."""

    def __getitem__(self, index: int) -> AnnotatedImage:
        if index % 2:
            raise DataError("gone")
        return super().__getitem__(index)


NO_BASE = BaseSet(images=None, about="Not measured")


def test_clicks_are_counted_side_by_side() -> None:
    found = compare(Painter(1), Painter(4), PaintedSet(), images=8, objects=2)
    assert found == Comparison(
        data_set="painted",
        images=8,
        objects=16,
        candidate=1.0,
        in_use=4.0,
        difference=Interval(mean=-3.0, low=-3.0, high=-3.0),
        per_image=((1.0, 4.0),) * 8,
    )


class Grows(Painter):
    """Reaches an IoU of about 0.82, 0.87 and 0.95 with the second, fourth and seventh click."""

    def draw(
        self, image: NDArray[np.uint8], clicks: Sequence[Click]
    ) -> tuple[NDArray[np.bool_], float]:
        mask = painted_alike(image, clicks[0])
        inside = np.flatnonzero(mask)
        share = 0.95 if len(clicks) >= 7 else 0.87 if len(clicks) >= 4 else 0.82
        kept = inside[: round(share * len(inside)) if len(clicks) >= 2 else 1]
        found = np.zeros(mask.size, bool)
        found[kept] = True
        return found.reshape(mask.shape), 1.0


def test_clicks_to_several_targets_are_averaged() -> None:
    found = compare(
        Grows(0), Painter(1), PaintedSet(), images=4, objects=2, targets=(0.8, 0.85, 0.9)
    )
    assert found is not None
    assert found.candidate == pytest.approx((2 + 4 + 7) / 3)
    assert found.in_use == 1.0
    assert found.goal == "80, 85 and 90 % IoU"


class Renamed(PaintedSet):
    """Objects in another order and with other names."""

    def __getitem__(self, index: int) -> AnnotatedImage:
        image = super().__getitem__(index)
        objects = [
            replace(item, name=f"r{number}") for number, item in enumerate(image.objects[::-1])
        ]
        return replace(image, objects=tuple(objects))


class Remembers(Painter):
    """Remembers where it was clicked first."""

    def __init__(self) -> None:
        super().__init__(1)
        self.firsts: list[tuple[float, float]] = []

    def draw(
        self, image: NDArray[np.uint8], clicks: Sequence[Click]
    ) -> tuple[NDArray[np.bool_], float]:
        self.firsts.append((clicks[0].x, clicks[0].y))
        return super().draw(image, clicks)


@pytest.mark.parametrize("annotators", [None, 3])
def test_the_same_masks_are_measured_whatever_they_are_called(annotators: int | None) -> None:
    one, other = Remembers(), Remembers()
    compare(one, Painter(1), PaintedSet(), images=8, objects=1, annotators=annotators)
    compare(other, Painter(1), Renamed(), images=8, objects=1, annotators=annotators)
    assert one.firsts == other.firsts


def test_several_annotators_click_on_every_object_each_somewhere_else() -> None:
    seen = Remembers()
    found = compare(seen, Painter(2), PaintedSet(), images=8, objects=1, annotators=3)
    assert found is not None
    assert (found.images, found.objects) == (8, 8)
    assert len(seen.firsts) == 24
    assert len(set(seen.firsts)) > 12
    # One for whom a model does not work counts among them.
    assert (found.candidate, found.in_use) == (1.0, 2.0)
    failing = compare(Fails(1), Painter(2), PaintedSet(), images=8, objects=1, annotators=3)
    assert failing is not None
    assert (failing.candidate, failing.in_use) == (20.0, 2.0)


class Unsteady(Painter):
    """Needs one click where the first of them is in the left half of an object, else three."""

    def draw(
        self, image: NDArray[np.uint8], clicks: Sequence[Click]
    ) -> tuple[NDArray[np.bool_], float]:
        mask = painted_alike(image, clicks[0])
        middle = np.flatnonzero(mask.any(0)).mean()
        self.clicks = 1 if clicks[0].x < middle else 3
        return super().draw(image, clicks)


def test_with_several_annotators_chance_says_less() -> None:
    def width(annotators: int) -> float:
        found = compare(
            Unsteady(1), Painter(4), PaintedSet(), images=8, objects=1, annotators=annotators
        )
        assert found is not None
        assert found.difference.low > -3
        return found.difference.high - found.difference.low

    assert width(8) < width(1)


def test_sets_are_limited_evenly_and_alike() -> None:
    found = compare(Painter(1), Painter(2), PaintedSet(length=100), images=5, objects=1)
    assert found is not None
    assert (found.images, found.objects) == (5, 5)


def test_what_cannot_be_measured_is_left_out() -> None:
    found = compare(Painter(1), Painter(2), Half(), images=8, objects=2)
    assert found is not None
    assert found.images == 4
    empty = PaintedSet(length=0)
    assert compare(Painter(1), Painter(2), empty, images=8, objects=2) is None


def test_a_model_that_fails_does_not_win_by_failing() -> None:
    found = compare(Fails(1), Painter(2), PaintedSet(), images=8, objects=2)
    assert found is not None
    assert (found.candidate, found.in_use) == (20.0, 2.0)


def verdict(
    candidate: Painter, in_use: Painter, *, images: int = 8, base: BaseSet = NO_BASE
) -> Verdict:
    held_out = PaintedSet(length=images)
    return judge(candidate, in_use, held_out=held_out, base=base, images=24, objects=2)


def test_better_there_and_not_worse_here_is_promoted() -> None:
    base = BaseSet(images=PaintedSet(length=6, name="base"), about="the base set")
    found = verdict(Painter(1), Painter(3), base=base)
    assert found.passed
    assert found.text.startswith("Promoted: it needs fewer clicks")
    assert (
        "8 images (16 objects) held out it needs 1.00 clicks to 80, 85 and 90 % IoU" in found.text
    )
    assert "difference -2.00, 95 % interval -2.00 to -2.00" in found.text
    assert "On the base set it needs 1.00 clicks" in found.text


@pytest.mark.parametrize("clicks", [3, 5])
def test_what_is_not_better_is_kept(clicks: int) -> None:
    found = verdict(Painter(clicks), Painter(3))
    assert not found.passed
    assert "does not need fewer clicks" in found.text
    assert "Not measured." in found.text


def test_with_few_images_nothing_is_promoted() -> None:
    assert "only 4 images are held out" in verdict(Painter(1), Painter(3), images=4).text
    assert not verdict(Painter(1), Painter(3), images=4).passed
    assert verdict(Painter(1), Painter(3), images=5).passed
    assert "No image is held out" in verdict(Painter(1), Painter(3), images=0).text


def test_the_fewer_images_the_more_annotators() -> None:
    def places_of_first_clicks(images: int) -> float:
        seen = Remembers()
        held_out = PaintedSet(length=images)
        judge(seen, Painter(3), held_out=held_out, base=NO_BASE, images=40, objects=1)
        return len(set(seen.firsts)) / images

    assert places_of_first_clicks(5) > 2 * places_of_first_clicks(40)


def test_what_is_never_found_counts_as_long_as_an_annotator_is_patient() -> None:
    found = verdict(Fails(1), Painter(2)).held_out
    assert found is not None
    assert (found.candidate, found.in_use) == (gate.PATIENCE, 2.0)


class Forgetful(Painter):
    """Good at images of one height, bad at all others."""

    def embed(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        self.clicks = 1 if rgb.shape[0] == 60 else 9
        return rgb


def test_who_forgets_is_kept() -> None:
    base = BaseSet(images=PaintedSet(length=6, height=80, name="base"), about="the base set")
    found = verdict(Forgetful(1), Painter(3), base=base)
    assert not found.passed
    assert "forgot something" in found.text


class Gone(PaintedSet):
    """A data set whose files were moved."""

    def __getitem__(self, index: int) -> AnnotatedImage:
        raise DataError("gone")


@pytest.mark.parametrize("required", [True, False])
def test_a_base_set_that_was_asked_for_has_to_be_measured(required: bool) -> None:
    base = BaseSet(images=Gone(length=6), about="the base set", required=required)
    found = verdict(Painter(1), Painter(3), base=base)
    assert found.passed is not required
    assert found.base is None
    assert found.text.endswith("On the base set nothing could be measured.")
    assert ("LIDIV_BASE_DATA" in found.text) is required


@pytest.mark.parametrize("number", [5, 8, 20])
def test_intervals_of_few_images_hold_the_mean_as_often_as_they_say(number: int) -> None:
    trials = 600
    drawn = np.random.default_rng(number).normal(0.0, 0.5, (trials, number))
    found = [gate.mean_of_few(values) for values in drawn]
    held = np.mean([interval.low <= 0.0 <= interval.high for interval in found])
    better_by_chance = np.mean([interval.high < 0.0 for interval in found])
    # Three standard errors of what 600 trials can tell.
    assert held == pytest.approx(0.95, abs=0.027)
    assert better_by_chance == pytest.approx(0.025, abs=0.019)
    np.testing.assert_allclose([each.mean for each in found], drawn.mean(axis=1))


def test_one_image_has_no_interval() -> None:
    found = gate.mean_of_few(np.array([1.5]))
    assert (found.low, found.mean, found.high) == (1.5, 1.5, 1.5)


@pytest.mark.parametrize(
    ("mean", "low", "high", "worse"),
    [
        (0.05, -0.2, 0.3, False),
        (-1.0, -1.5, -0.5, False),
        (0.15, -0.2, 0.5, True),
        (0.05, 0.01, 0.09, True),
        (0.1, -0.1, 0.3, False),
    ],
)
def test_what_counts_as_worse(mean: float, low: float, high: float, worse: bool) -> None:
    interval = Interval(mean=mean, low=low, high=high)
    found = Comparison(
        data_set="b", images=9, objects=9, candidate=2.0, in_use=2.0, difference=interval
    )
    assert is_worse(found) == worse


def test_a_verdict_survives_the_database() -> None:
    found = verdict(Painter(1), Painter(3))
    assert Verdict.from_json(json.loads(json.dumps(found.to_json()))) == found


class Blobs(Painter):
    """Knows nothing of images: by the third click it has drawn the mask it was taught."""

    def __init__(self, clicks: int, masks: Sequence[NDArray[np.bool_]]) -> None:
        super().__init__(clicks)
        self.masks = masks

    def draw(
        self, image: NDArray[np.uint8], clicks: Sequence[Click]
    ) -> tuple[NDArray[np.bool_], float]:
        first = clicks[0]
        wanted = [mask for mask in self.masks if mask[round(first.y), round(first.x)]]
        mask = min(wanted, key=lambda mask: abs(_middle(mask) - (first.x, first.y)).sum())
        if len(clicks) < self.clicks:
            mask = mask & (np.arange(mask.shape[0])[:, None] < round(first.y) + 1)
        return mask, 1.0


def _middle(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    middle: NDArray[np.float64] = np.argwhere(mask).mean(0)[::-1]
    return middle


def test_who_is_better_at_masks_that_fit_no_image_is_kept() -> None:
    images = PaintedSet(length=8)
    masks = [item.mask for index in range(8) for item in images[index].objects]
    clicks = compare(Blobs(2, masks), Blobs(3, masks), images, images=8, objects=2)
    assert clicks is not None
    assert clicks.difference.high < 0
    found = verdict(Blobs(2, masks), Blobs(3, masks))
    assert not found.passed
    assert (found.held_out, found.base) == (None, None)
    assert found.fit is not None
    assert not found.fit.holds
    assert "fit other images as well as their own" in found.text
    # Somebody who looks at the image is not stopped by this.
    seeing = verdict(Painter(1), Painter(3))
    assert seeing.fit is not None
    assert seeing.fit.holds
    assert Verdict.from_json(json.loads(json.dumps(seeing.to_json()))) == seeing


def test_other_masks_come_at_the_size_of_the_image() -> None:
    image, other = PaintedSet()[0], PaintedSet(height=30, width=40)[1]
    bad = with_masks_of(image, other)
    assert bad.rgb is image.rgb
    for item, theirs in zip(bad.objects, other.objects, strict=True):
        # Twice as large along both sides.
        np.testing.assert_array_equal(item.mask, theirs.mask.repeat(2, 0).repeat(2, 1))
