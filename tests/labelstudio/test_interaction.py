from __future__ import annotations

import math

import numpy as np
import pytest

from lidiv_backend.clicks import Click
from lidiv_backend.errors import BadClickError
from lidiv_backend.labelstudio.interaction import MAX_CLICKS, Interactions, Showing, Start
from lidiv_backend.predictor import Proposal
from tests.fake_engine import FakeEmbedding, FakeEngine

IMAGE = FakeEmbedding("image", 200, 400)
# 1.5 % of 400 is 6 pixels; the smallest disk has radius 24, a quarter of its √area is 10.6.
FIRST = Click(x=100.0, y=100.0)
NEAR = Click(x=104.0, y=100.0)
FAR = Click(x=160.0, y=100.0)
AWAY = Click(x=100.0, y=50.0, positive=False)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def interactions() -> Interactions:
    return Interactions(max_bytes=100_000_000)


def test_the_first_click_shows_the_best_proposal(
    engine: FakeEngine, interactions: Interactions
) -> None:
    showing = interactions.replay(engine, IMAGE, [FIRST])
    assert (showing.index, showing.text) == (0, "proposal 1 of 4")
    assert showing.shown is showing.proposals[0]
    assert engine.calls[0][1] is None


def test_a_click_nearby_shows_the_next_and_is_no_prompt(
    engine: FakeEngine, interactions: Interactions
) -> None:
    first = interactions.replay(engine, IMAGE, [FIRST])
    second = interactions.replay(engine, IMAGE, [FIRST, NEAR])
    assert second.text == "proposal 2 of 4"
    assert second.proposals is first.proposals
    assert (second.prompts, second.cycling) == ((FIRST,), (False, True))
    assert len(engine.calls) == 1


def test_it_wraps_around(engine: FakeEngine, interactions: Interactions) -> None:
    around = [Click(x=100 + 4 * math.cos(angle), y=100 + 4 * math.sin(angle)) for angle in range(4)]
    texts = [
        interactions.replay(engine, IMAGE, [FIRST, *around[:count]]).text for count in range(5)
    ]
    assert texts == [f"proposal {number} of 4" for number in (1, 2, 3, 4, 1)]
    assert len(engine.calls) == 1


def test_a_real_click_refines_what_was_showing(
    engine: FakeEngine, interactions: Interactions
) -> None:
    cycled = interactions.replay(engine, IMAGE, [FIRST, NEAR])
    refined = interactions.replay(engine, IMAGE, [FIRST, NEAR, FAR])
    clicks, previous = engine.calls[-1]
    assert clicks == (FIRST, FAR)  # the click that cycled is no prompt
    assert previous is not None
    assert cycled.shown is not None
    np.testing.assert_array_equal(previous, cycled.shown.mask)
    assert refined.text == "proposal 1 of 4"


def test_cycling_goes_on_after_a_negative_click(
    engine: FakeEngine, interactions: Interactions
) -> None:
    showing = interactions.replay(engine, IMAGE, [FIRST, AWAY, NEAR])
    assert showing.prompts == (FIRST, AWAY)
    assert showing.text == "proposal 2 of 4"
    assert showing.shown is not None
    assert not showing.shown.mask[50, 100]


def test_a_negative_click_nearby_is_a_prompt(
    engine: FakeEngine, interactions: Interactions
) -> None:
    negative = Click(x=NEAR.x, y=NEAR.y, positive=False)
    assert interactions.replay(engine, IMAGE, [FIRST, negative]).prompts == (FIRST, negative)


@pytest.mark.parametrize(("distance", "cycles"), [(0.0, True), (6.0, True), (6.1, False)])
def test_near_is_at_most_a_share_of_the_longer_side(
    engine: FakeEngine, interactions: Interactions, distance: float, cycles: bool
) -> None:
    second = Click(x=FIRST.x, y=FIRST.y + distance)
    assert interactions.replay(engine, IMAGE, [FIRST, second]).cycling == (False, cycles)


@pytest.mark.parametrize(("distance", "cycles"), [(1.0, True), (3.0, False)])
def test_near_is_less_on_a_small_object(
    interactions: Interactions, distance: float, cycles: bool
) -> None:
    # A disk of radius 5 has about 80 pixels: a quarter of its √area is 2.2.
    engine = FakeEngine(radii=(5 / 200, 0.2))
    second = Click(x=FIRST.x + distance, y=FIRST.y)
    assert interactions.replay(engine, IMAGE, [FIRST, second]).cycling == (False, cycles)


def test_the_proposal_that_is_showing_says_what_is_small(interactions: Interactions) -> None:
    engine = FakeEngine(radii=(0.2, 5 / 200))
    # Near enough for the first mask, whose area is large; then the small one is showing.
    clicks = [FIRST, Click(x=104.0, y=100.0), Click(x=96.0, y=100.0)]
    assert interactions.replay(engine, IMAGE, clicks).cycling == (False, True, False)


def test_cycling_clicks_may_surround_the_prompt_or_wander(
    engine: FakeEngine, interactions: Interactions
) -> None:
    surround = [FIRST, Click(x=105.0, y=100.0), Click(x=95.0, y=100.0)]
    assert interactions.replay(engine, IMAGE, surround).cycling == (False, True, True)
    wander = [FIRST, Click(x=105.0, y=100.0), Click(x=110.0, y=100.0)]
    assert interactions.replay(engine, IMAGE, wander).cycling == (False, True, True)


def test_one_proposal_stays(interactions: Interactions) -> None:
    engine = FakeEngine(radii=(0.2,))
    assert interactions.replay(engine, IMAGE, [FIRST, NEAR]).text == "proposal 1 of 1"


class TestLookingAhead:
    around = (
        FIRST,
        *(Click(x=100 + 4 * math.cos(angle), y=100 + 4 * math.sin(angle)) for angle in range(4)),
    )

    def test_further_alternatives_come_when_they_are_wanted(
        self, interactions: Interactions
    ) -> None:
        engine = FakeEngine(radii=(0.12, 0.2), ahead=(0.4, 0.3))
        texts, asked = [], []
        for count in range(1, 6):
            showing = interactions.replay(engine, IMAGE, self.around[:count])
            texts.append(showing.text)
            asked.append(engine.looked_ahead)
        assert texts == [
            "proposal 1 of 2 or more",
            "proposal 2 of 2 or more",
            "proposal 3 of 4",
            "proposal 4 of 4",
            "proposal 1 of 4",
        ]
        assert asked == [0, 0, 1, 1, 1]
        # The same for somebody who begins in the middle, as after a restart.
        again = Interactions(max_bytes=100_000_000).replay(engine, IMAGE, self.around[:3])
        assert (again.text, again.index) == ("proposal 3 of 4", 2)
        assert again.shown is not None
        assert again.shown.mask.sum() == pytest.approx(math.pi * (0.4 * 200) ** 2, rel=0.02)

    def test_a_click_refines_what_was_found_ahead(self, interactions: Interactions) -> None:
        engine = FakeEngine(radii=(0.12,), ahead=(0.4,))
        ahead = interactions.replay(engine, IMAGE, self.around[:2])
        refined = interactions.replay(engine, IMAGE, [*self.around[:2], AWAY])
        clicks, previous = engine.calls[-1]
        assert clicks == (FIRST, AWAY)
        assert ahead.shown is not None
        assert previous is not None
        np.testing.assert_array_equal(previous, ahead.shown.mask)
        # There is nothing ahead of several clicks.
        assert refined.text == "proposal 1 of 1"

    def test_where_there_are_none_the_first_comes_again(self, interactions: Interactions) -> None:
        engine = FakeEngine(radii=(0.12,), ahead=())
        assert interactions.replay(engine, IMAGE, [FIRST]).text == "proposal 1 of 1 or more"
        assert interactions.replay(engine, IMAGE, [FIRST, NEAR]).text == "proposal 1 of 1"
        assert interactions.replay(engine, IMAGE, [FIRST, NEAR, FAR]).index == 0

    def test_not_where_the_click_refines_what_was_there_before(
        self, interactions: Interactions
    ) -> None:
        engine = FakeEngine(radii=(0.12,), ahead=(0.4,))
        mask = np.zeros((IMAGE.height, IMAGE.width), bool)
        mask[90:110, 20:60] = True
        start = Start(key="copy", proposals=(Proposal(mask=mask, score=1.0, head=0),))
        assert interactions.replay(engine, IMAGE, [FIRST], start).text == "proposal 1 of 1"


def test_a_negative_click_alone_shows_nothing(
    engine: FakeEngine, interactions: Interactions
) -> None:
    assert interactions.replay(engine, IMAGE, [AWAY]).shown is None
    showing = interactions.replay(engine, IMAGE, [AWAY, FIRST])
    assert showing.text == "proposal 1 of 4"
    assert engine.calls == [((AWAY, FIRST), None)]


def test_no_clicks_show_nothing(engine: FakeEngine, interactions: Interactions) -> None:
    assert interactions.replay(engine, IMAGE, []) == Showing()


def test_one_click_is_one_pass(engine: FakeEngine, interactions: Interactions) -> None:
    clicks = [FIRST, FAR, AWAY, Click(x=200.0, y=150.0)]
    for count in range(1, 5):
        interactions.replay(engine, IMAGE, clicks[:count])
        assert len(engine.calls) == count
    interactions.replay(engine, IMAGE, clicks)
    assert len(engine.calls) == 4


@pytest.mark.parametrize("max_bytes", [0, 4 * 200 * 400])
def test_what_the_memo_forgot_is_replayed_to_the_same_end(
    engine: FakeEngine, interactions: Interactions, max_bytes: int
) -> None:
    clicks = [FIRST, NEAR, FAR, AWAY, Click(x=163.0, y=100.0)]
    remembered = [interactions.replay(engine, IMAGE, clicks[:n]) for n in range(1, 6)][-1]
    forgetful = Interactions(max_bytes=max_bytes).replay(FakeEngine(), IMAGE, clicks)
    assert (remembered.index, remembered.prompts) == (forgetful.index, forgetful.prompts)
    for one, other in zip(remembered.proposals, forgetful.proposals, strict=True):
        np.testing.assert_array_equal(one.mask, other.mask)


def test_images_and_versions_do_not_share_what_is_remembered(interactions: Interactions) -> None:
    engine, newer = FakeEngine(), FakeEngine("fake-2")
    interactions.replay(engine, IMAGE, [FIRST])
    interactions.replay(newer, IMAGE, [FIRST])
    interactions.replay(engine, FakeEmbedding("another", 200, 400), [FIRST])
    assert (len(engine.calls), len(newer.calls)) == (2, 1)


def test_clicks_that_no_image_can_take_are_refused(
    engine: FakeEngine, interactions: Interactions
) -> None:
    with pytest.raises(BadClickError, match="outside"):
        interactions.replay(engine, IMAGE, [FIRST, Click(x=400.0, y=1.0)])
    many = [Click(x=float(i % 400), y=1.0) for i in range(MAX_CLICKS + 1)]
    with pytest.raises(BadClickError, match=str(MAX_CLICKS)):
        interactions.replay(engine, IMAGE, many)
    assert engine.calls == []
