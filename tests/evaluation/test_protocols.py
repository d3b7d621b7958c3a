import itertools

import numpy as np
import pytest

from lidiv_backend.clicks import Click
from lidiv_backend.errors import DataError
from lidiv_backend.evaluation.protocols import (
    Action,
    ClickProtocol,
    ProtocolSettings,
    intersection_over_union,
    run_object,
)
from lidiv_backend.predictor import Proposal
from lidiv_backend.records import ObjectMask

SIZE = (40, 60)


def block(top: int, bottom: int, left: int, right: int) -> np.ndarray:
    mask = np.zeros(SIZE, dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


TARGET = block(10, 30, 10, 50)


class Scripted:
    """Answers the k-th click with the k-th list of masks, and remembers what it was asked."""

    version = "1"

    def __init__(self, answers: list[list[np.ndarray]], *, both_signs: bool = False) -> None:
        self.answers = answers
        self.asked: list[tuple[tuple[Click, ...], np.ndarray | None]] = []
        self.needs_both_signs = both_signs

    def embed(self, rgb: np.ndarray) -> None:
        return None

    def predict(self, image, clicks, previous=None):
        self.asked.append((tuple(clicks), previous))
        masks = self.answers[min(len(clicks), len(self.answers)) - 1]
        return [Proposal(mask=mask, score=0.5, head=head) for head, mask in enumerate(masks)]


def settings(**changes: object) -> ProtocolSettings:
    return ProtocolSettings(**{"stop_at": 0.95, "actions": False, **changes})


def item(mask: np.ndarray = TARGET, ignore: np.ndarray | None = None) -> ObjectMask:
    return ObjectMask(name="block", mask=mask, ignore=ignore)


def test_every_click_is_recorded_with_the_selected_and_the_best_mask() -> None:
    half, most = block(10, 30, 10, 30), block(10, 30, 10, 46)
    method = Scripted([[half, most], [most, half], [TARGET]])
    trace = run_object(method, None, item(), settings=settings(), embed_seconds=1.5)
    assert [step.iou for step in trace.steps] == [0.5, 0.9, 1.0]
    assert [step.oracle for step in trace.steps] == [0.9, 0.9, 1.0]
    assert [step.proposals for step in trace.steps] == [2, 2, 1]
    assert [step.clicks for step in trace.steps] == [1, 2, 3]
    assert trace.embed_seconds == 1.5
    # Each click is told the mask that was shown before it, the first is told none.
    assert method.asked[0][1] is None
    np.testing.assert_array_equal(method.asked[1][1], half)
    np.testing.assert_array_equal(method.asked[2][1], most)
    assert [len(clicks) for clicks, _ in method.asked] == [1, 2, 3]


def test_alternatives_ahead_are_offered_behind_the_others() -> None:
    half, most = block(10, 30, 10, 30), block(10, 30, 10, 46)

    class LooksAhead(Scripted):
        def look_ahead(self, image, clicks, proposals):
            if len(clicks) > 1:
                return []
            assert [proposal.head for proposal in proposals] == [0, 1]
            return [Proposal(mask=most, score=0.9, head=-1)]

    method = LooksAhead([[half, block(10, 30, 10, 14)], [half]])
    trace = run_object(method, None, item(), settings=settings(actions=True, max_clicks=3))
    # The first one is shown all the same, and a click places them where it is wrong.
    assert [step.iou for step in trace.steps] == [0.5] * 3
    assert [step.oracle for step in trace.steps] == [0.9, 0.5, 0.5]
    assert [step.proposals for step in trace.steps] == [3, 1, 1]
    # Two steps are two actions.
    assert [(action.actions, action.stepped) for action in trace.actions] == [(1, False), (3, True)]
    assert trace.actions[1].iou == 0.9


def test_clicks_go_where_the_shown_mask_is_wrong() -> None:
    shown = block(10, 30, 10, 30) | block(32, 38, 0, 60)
    trace = run_object(Scripted([[shown], [TARGET]]), None, item(), settings=settings())
    first, second = trace.clicks
    assert first.positive
    assert TARGET[int(first.y), int(first.x)]
    # The missed half is larger than the stripe that was added.
    assert second.positive
    assert (TARGET & ~shown)[int(second.y), int(second.x)]


@pytest.mark.parametrize("protocol", list(ClickProtocol))
def test_at_most_twenty_clicks_never_on_ignored_pixels_and_never_twice(protocol) -> None:
    ignore = block(10, 30, 10, 20) | block(0, 8, 0, 60)
    wrong = block(8, 26, 12, 60)
    trace = run_object(
        Scripted([[wrong]]), None, item(ignore=ignore), settings=settings(protocol=protocol), seed=3
    )
    assert len(trace.clicks) == len(trace.steps) == 20
    places = {(int(click.y), int(click.x)) for click in trace.clicks}
    assert len(places) == 20
    assert not any(ignore[place] for place in places)
    for click in trace.clicks[1:]:
        place = int(click.y), int(click.x)
        assert (wrong ^ TARGET)[place]
        assert click.positive == TARGET[place]
    expected = (wrong & TARGET & ~ignore).sum() / ((wrong | TARGET) & ~ignore).sum()
    assert trace.steps[0].iou == pytest.approx(expected)


def test_the_same_seed_gives_the_same_clicks_and_another_seed_others() -> None:
    chosen = settings(protocol=ClickProtocol.SAMPLED)

    def clicks(seed: int, identity: str = "set/image") -> tuple[Click, ...]:
        method = Scripted([[block(0, 5, 0, 5)]])
        return run_object(
            method, None, item(), settings=chosen, seed=seed, identity=identity
        ).clicks

    assert clicks(1) == clicks(1)
    assert clicks(1) != clicks(2)
    # Two objects do not get the same draws because they share a seed.
    assert clicks(1) != clicks(1, "set/other")


def test_systems_that_need_both_signs_get_both_before_their_first_result() -> None:
    method = Scripted([[TARGET], [TARGET]], both_signs=True)
    trace = run_object(method, None, item(), settings=settings())
    assert [click.positive for click in trace.clicks] == [True, False]
    assert TARGET[int(trace.clicks[0].y), int(trace.clicks[0].x)]
    assert not TARGET[int(trace.clicks[1].y), int(trace.clicks[1].x)]
    assert [step.clicks for step in trace.steps] == [2]
    assert [len(clicks) for clicks, _ in method.asked] == [2]


def test_stops_when_no_pixel_is_wrong_that_counts() -> None:
    ignore = ~block(9, 31, 9, 51)
    trace = run_object(
        Scripted([[block(10, 40, 10, 50)]]),
        None,
        item(ignore=ignore),
        settings=settings(stop_at=1.1),
    )
    # One row of the wrong stripe counts; it can be clicked 40 times, but only 20 clicks are made.
    assert len(trace.clicks) == 20
    trace = run_object(Scripted([[TARGET]]), None, item(), settings=settings(stop_at=1.1))
    assert len(trace.clicks) == 1


def test_a_step_to_a_better_proposal_is_taken_when_it_gains_more_than_a_click() -> None:
    half, most = block(10, 30, 10, 30), block(10, 30, 10, 46)
    # After the first click the third proposal is right, and a click would bring little.
    method = Scripted([[half, most, TARGET], [most]])
    trace = run_object(method, None, item(), settings=settings(actions=True))
    # Stepping to the second proposal costs 1 and gains 0.4; going on to the third costs 1 more.
    assert trace.actions == (
        Action(actions=1, iou=0.5, stepped=False),
        Action(actions=2, iou=0.9, stepped=True),
        Action(actions=3, iou=1.0, stepped=True),
    )


def test_a_click_is_made_when_it_gains_more_than_a_step_and_refines_what_shows() -> None:
    half, most = block(10, 30, 10, 30), block(10, 30, 10, 34)
    method = Scripted([[half, most], [half], [TARGET]])
    trace = run_object(method, None, item(), settings=settings(actions=True))
    assert [action.stepped for action in trace.actions] == [False, True, False, False]
    assert [action.actions for action in trace.actions] == [1, 2, 3, 4]
    # The click after the step was told the proposal that had been stepped to.
    assert any(
        len(clicks) == 2 and np.array_equal(previous, most) for clicks, previous in method.asked
    )


def test_without_alternatives_actions_are_clicks_and_cost_no_further_prediction() -> None:
    masks = [block(10, 30, 10, right) for right in (20, 30, 40, 50)]
    method = Scripted([[mask] for mask in masks])
    trace = run_object(method, None, item(), settings=settings(actions=True))
    assert [action.actions for action in trace.actions] == [1, 2, 3, 4]
    assert [action.iou for action in trace.actions] == [step.iou for step in trace.steps]
    assert len(method.asked) == 4


def test_what_breaks_the_contract_is_named() -> None:
    with pytest.raises(DataError, match="no proposal"):
        run_object(Scripted([[]]), None, item(), settings=settings())
    with pytest.raises(DataError, match="shape"):
        run_object(Scripted([[np.ones((3, 3), bool)]]), None, item(), settings=settings())
    with pytest.raises(DataError, match="ignored region"):
        run_object(Scripted([[TARGET]]), None, item(ignore=TARGET), settings=settings())
    full = np.ones(SIZE, bool)
    with pytest.raises(DataError, match="whole image"):
        run_object(Scripted([[full]], both_signs=True), None, item(full), settings=settings())


def test_intersection_over_union_against_counting() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask, target, ignore = (rng.random((5, 7)) < 0.4 for _ in range(3))
        inter = union = 0
        for place in itertools.product(range(5), range(7)):
            if not ignore[place]:
                inter += mask[place] and target[place]
                union += mask[place] or target[place]
        assert intersection_over_union(mask, target, ignore) == inter / union
    assert intersection_over_union(np.zeros((2, 2), bool), np.zeros((2, 2), bool)) == 1.0
