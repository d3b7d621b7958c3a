import math

import numpy as np
import pytest

from lidiv_backend.clicks import Click
from lidiv_backend.evaluation.replay import Interaction, masks_shown, replay, summarise_replay
from lidiv_backend.labelstudio.interaction import Interactions
from lidiv_backend.predictor import Proposal
from tests.fake_engine import FakeEngine

ACCEPTED = np.zeros((10, 20), bool)
ACCEPTED[:, :10] = True


class Growing:
    """Selects as many columns as it has seen clicks, times its speed."""

    def __init__(self, speed: int) -> None:
        self.speed = speed
        self.previous: list[int | None] = []

    def embed(self, rgb):
        return rgb.shape[:2]

    def predict(self, image, clicks, previous=None):
        self.previous.append(None if previous is None else int(previous.sum()))
        mask = np.zeros(image, bool)
        mask[:, : self.speed * len(clicks)] = True
        return [Proposal(mask=mask, score=1.0, head=0)]


def interaction(name: str, clicks: int) -> Interaction:
    return Interaction(
        name=name,
        rgb=np.zeros((10, 20, 3), np.uint8),
        clicks=tuple(Click(x=k, y=0) for k in range(clicks)),
        accepted=ACCEPTED,
    )


def test_clicks_saved_and_lost() -> None:
    quick = Growing(speed=5)
    found = list(replay(quick, [interaction("a", 4), interaction("b", 1)]))
    assert found[0].ious == (0.5, 1.0, 10 / 15, 0.5)
    assert (found[0].needed, found[0].saved) == (2, 2)
    # One click is not enough for this model: at least one more would be needed.
    assert (found[1].needed, found[1].saved) == (None, -1)
    assert quick.previous == [None, 50, 100, 150, None]
    summary = summarise_replay(found)
    assert (summary.interactions, summary.clicks, summary.sufficed) == (2, 5, 0.5)
    assert summary.saved.mean == 0.5


def test_nothing_to_replay() -> None:
    summary = summarise_replay(list(replay(Growing(speed=1), [])))
    assert summary.interactions == 0
    assert math.isnan(summary.saved.mean)


def calls(engine: FakeEngine) -> list[tuple[object, object]]:
    """The clicks and previous masks that it was asked with, each once told."""
    asked = [(clicks, None if mask is None else mask.tolist()) for clicks, mask in engine.calls]
    engine.calls.clear()
    return asked


@pytest.mark.parametrize(
    ("made", "steps"),
    [
        # Through all four proposals and the two behind them, and once more to the second.
        ("+nnnnnnn", [7]),
        # What is clicked after a step refines the mask that was stepped to.
        ("+n-nnnn+", [1, 4, 0]),
        # Nothing shows until something is clicked positively.
        ("-+n", [0, 1]),
    ],
)
def test_masks_are_those_that_the_server_shows(made: str, steps: list[int]) -> None:
    places = {"+": (40.0, 30.0), "-": (70.0, 50.0), "n": (40.0, 30.5)}
    clicks = [Click(x=places[kind][0], y=places[kind][1], positive=kind != "-") for kind in made]
    engine, rgb = FakeEngine(ahead=(0.45, 0.05)), np.zeros((90, 120, 3), np.uint8)
    # Beside the last click, not on it: a refinement.
    clicks[-1] = clicks[-1] if made[-1] == "n" else Click(x=10, y=10)
    image, server = engine.embed(rgb), Interactions(max_bytes=10**8)
    shown = [server.replay(engine, image, clicks[:count]) for count in range(1, len(clicks) + 1)]
    assert shown[-1].cycling == tuple(kind == "n" for kind in made)
    prompts = [click for click, kind in zip(clicks, made, strict=True) if kind != "n"]
    asked = calls(engine)
    found = list(masks_shown(engine, rgb, prompts, steps))
    assert calls(engine) == asked
    assert len(found) == len(shown)
    for mask, expected in zip(found, shown, strict=True):
        wanted = np.zeros((90, 120), bool) if expected.shown is None else expected.shown.mask
        assert np.array_equal(mask, wanted)
