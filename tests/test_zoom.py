"""Looking closer: where, and what the networks are shown there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lidiv_backend.clicks import Click
from lidiv_backend.model import InferenceConfig
from lidiv_backend.predictor import ImageEmbedding, Predictor
from lidiv_backend.zoom import Shown, Window, choose_window
from tests import tiny

HEIGHT, WIDTH = 480, 640
WHOLE = Window(left=0, top=0, width=WIDTH, height=HEIGHT)


def box_mask(left: int, top: int, width: int, height: int) -> NDArray[np.float32]:
    mask = np.zeros((HEIGHT, WIDTH), np.float32)
    mask[top : top + height, left : left + width] = 1
    return mask


def window_for(mask: NDArray[np.float32], *clicks: Click) -> Window | None:
    shown = Shown(mask=mask, window=WHOLE)
    return choose_window(shown, clicks, height=HEIGHT, width=WIDTH, side=448, density=1.0)


class TestChoice:
    @settings(max_examples=200, deadline=None)
    @given(data=st.data())
    def test_holds_the_mask_and_the_clicks_and_lies_in_the_image(self, data: Any) -> None:
        left, top = data.draw(st.integers(0, 600)), data.draw(st.integers(0, 440))
        width = data.draw(st.integers(1, min(200, WIDTH - left)))
        height = data.draw(st.integers(1, min(200, HEIGHT - top)))
        place = st.builds(
            Click, x=st.floats(0, WIDTH - 1), y=st.floats(0, HEIGHT - 1), positive=st.booleans()
        )
        clicks = data.draw(st.lists(place, max_size=4))
        window = window_for(box_mask(left, top, width, height), *clicks)
        if window is None:
            return
        right, bottom = window.left + window.width, window.top + window.height
        assert 0 <= window.left <= left
        assert left + width <= right <= WIDTH
        assert 0 <= window.top <= top
        assert top + height <= bottom <= HEIGHT
        for click in clicks:
            moved = window.moved(click)
            assert -0.5 <= moved.x <= window.width - 0.5
            assert -0.5 <= moved.y <= window.height - 0.5

    def test_an_object_that_fills_the_image_is_not_looked_at_closer(self) -> None:
        assert window_for(box_mask(30, 20, 560, 420)) is None

    def test_nothing_shown_is_nowhere(self) -> None:
        assert window_for(np.zeros((HEIGHT, WIDTH), np.float32), Click(x=3, y=3)) is None

    def test_a_speck_keeps_its_surroundings(self) -> None:
        window = window_for(box_mask(300, 200, 4, 4))
        assert window is not None
        assert min(window.width, window.height) >= 448 / 3

    def test_stays_where_it_is_when_the_mask_changes_a_little(self) -> None:
        windows = {
            window_for(box_mask(300 - d, 206, 108 + d, 108 + e)) for d in (0, 2) for e in (0, 4)
        }
        assert len(windows) == 1

    def test_a_click_within_does_not_move_it_and_one_outside_does(self) -> None:
        mask = box_mask(300, 200, 110, 110)
        alone = window_for(mask)
        assert alone is not None
        assert window_for(mask, Click(x=295, y=250)) == alone
        assert window_for(mask, Click(x=150, y=250)) != alone

    def test_the_resolution_of_the_mask_does_not_matter(self) -> None:
        mask = box_mask(300, 200, 112, 112)
        small = cv2.resize(mask, (WIDTH // 4, HEIGHT // 4), interpolation=cv2.INTER_AREA)
        shown = Shown(mask=small, window=WHOLE)
        got = choose_window(shown, (), height=HEIGHT, width=WIDTH, side=448, density=1.0)
        assert got == window_for(mask)


class TestSeenIn:
    @pytest.fixture
    def smooth(self) -> NDArray[np.float32]:
        rows, columns = np.mgrid[:HEIGHT, :WIDTH]
        wave = 0.5 + 0.5 * np.sin(rows / 40) * np.cos(columns / 55)
        return wave.astype(np.float32)

    def test_a_large_mask_is_averaged_onto_the_grid(self, smooth: NDArray[np.float32]) -> None:
        window = Window(left=64, top=32, width=320, height=160)
        got = Shown(mask=smooth, window=WHOLE).seen_in(window, (20, 40))
        inside = smooth[32:192, 64:384]
        np.testing.assert_allclose(got, inside.reshape(20, 8, 40, 8).mean((1, 3)), atol=1e-5)

    def test_the_same_window_at_the_same_size_is_left_alone(
        self, smooth: NDArray[np.float32]
    ) -> None:
        assert Shown(mask=smooth, window=WHOLE).seen_in(WHOLE, (HEIGHT, WIDTH)) is smooth

    def test_from_one_window_to_another(self, smooth: NDArray[np.float32]) -> None:
        first = Window(left=101, top=37, width=300, height=270)
        second = Window(left=143, top=61, width=230, height=200)
        whole = Shown(mask=smooth, window=WHOLE)
        seen = whole.seen_in(first, (135, 150))
        got = Shown(mask=seen, window=first).seen_in(second, (90, 110))
        np.testing.assert_allclose(got, whole.seen_in(second, (90, 110)), atol=0.01)

    def test_outside_of_what_was_seen_there_is_nothing(self) -> None:
        first = Window(left=100, top=100, width=100, height=100)
        shown = Shown(mask=np.ones((50, 50), np.float32), window=first)
        got = shown.seen_in(Window(left=50, top=100, width=100, height=100), (50, 50))
        np.testing.assert_array_equal(got[:, :24], 0)
        np.testing.assert_array_equal(got[:, 26:], 1)


class TestPredictor:
    CLICKS = (Click(x=40, y=52), Click(x=60, y=70), Click(x=42, y=80, positive=False))

    @pytest.fixture
    def predictor(self) -> Predictor:
        inference = InferenceConfig(longest_side=160, max_pixels=None, zoom_side=96)
        return tiny.predictor(tiny.description(pyramid=True, previous=True, inference=inference))

    @pytest.fixture
    def image(self, predictor: Predictor) -> ImageEmbedding:
        return predictor.embed(tiny.photo(120, 160))

    @pytest.fixture
    def previous(self) -> NDArray[np.bool_]:
        mask = np.zeros((120, 160), bool)
        mask[50:80, 38:66] = True
        return mask

    def test_is_the_same_as_cutting_the_image_by_hand(
        self, predictor: Predictor, image: ImageEmbedding, previous: NDArray[np.bool_]
    ) -> None:
        got = predictor.predict(image, self.CLICKS, previous)
        window = choose_window(
            Shown(mask=previous.astype(np.float32), window=image.whole),
            self.CLICKS,
            height=120,
            width=160,
            side=96,
            density=1.0,
        )
        assert window is not None
        about = predictor.model.description
        closer = InferenceConfig(longest_side=96, max_pixels=None)
        by_hand = Predictor(
            replace(predictor.model, description=replace(about, inference=closer)),
            predictor._encoder,
            device=tiny.CPU,
        )
        cut = by_hand.embed(np.ascontiguousarray(tiny.photo(120, 160)[window.slices]))
        expected = by_hand.predict(
            cut, [window.moved(click) for click in self.CLICKS], previous[window.slices]
        )
        assert [each.head for each in got] == [each.head for each in expected]
        for ours, theirs in zip(got, expected, strict=True):
            assert ours.score == pytest.approx(theirs.score, abs=1e-5)
            np.testing.assert_array_equal(ours.mask[window.slices], theirs.mask)
            outside = ours.mask.copy()
            outside[window.slices] = False
            assert not outside.any()

    def test_the_first_click_sees_the_whole_image(
        self, predictor: Predictor, image: ImageEmbedding
    ) -> None:
        plain = tiny.predictor(
            tiny.description(
                pyramid=True,
                previous=True,
                inference=InferenceConfig(longest_side=160, max_pixels=None),
            )
        )
        expected = plain.predict(plain.embed(tiny.photo(120, 160)), self.CLICKS[:1])
        got = predictor.predict(image, self.CLICKS[:1])
        np.testing.assert_array_equal(got[0].mask, expected[0].mask)

    def test_what_was_prepared_is_not_embedded_again(
        self, image: ImageEmbedding, previous: NDArray[np.bool_], predictor: Predictor
    ) -> None:
        fresh = Predictor(predictor.model, predictor._encoder, device=tiny.CPU)
        image = fresh.embed(tiny.photo(120, 160))
        embedded: list[str] = []
        embed = fresh._embed

        def counted(key: str, *args: Any, **options: Any) -> ImageEmbedding:
            embedded.append(key)
            return embed(key, *args, **options)

        fresh._embed = counted  # type: ignore[method-assign]
        fresh.prepare(image, self.CLICKS[:1], previous)
        assert len(embedded) == 1
        fresh.predict(image, self.CLICKS[:2], previous)
        assert len(embedded) == 1

    def test_a_replay_is_the_same_whether_remembered_or_not(self, predictor: Predictor) -> None:
        image = predictor.embed(tiny.photo(120, 160, seed=4))
        steps = [predictor.predict(image, self.CLICKS[:count]) for count in (1, 2, 3)]
        fresh = Predictor(predictor.model, predictor._encoder, device=tiny.CPU)
        again = fresh.predict(fresh.embed(tiny.photo(120, 160, seed=4)), self.CLICKS)
        for ours, theirs in zip(steps[-1], again, strict=True):
            np.testing.assert_array_equal(ours.mask, theirs.mask)

    def test_large_images_are_kept_reduced(self, predictor: Predictor) -> None:
        image = predictor.embed(tiny.photo(30, 4000))
        assert image.pixels is not None
        assert image.pixels.shape == (15, 2048, 3)
        previous = np.zeros((30, 4000), bool)
        previous[10:20, 3900:3990] = True
        got = predictor.predict(image, [Click(x=3950, y=15)] * 2, previous)
        assert not got[0].mask[:, :3600].any()

    def test_a_strip_of_one_pixel_can_be_looked_at(self, predictor: Predictor) -> None:
        image = predictor.embed(tiny.photo(1, 4000))
        previous = np.zeros((1, 4000), bool)
        previous[0, 3960:] = True
        got = predictor.predict(image, [Click(x=3999, y=0)] * 2, previous)
        assert got[0].mask.shape == (1, 4000)
