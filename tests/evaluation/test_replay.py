import math

import numpy as np

from lidiv_backend.clicks import Click
from lidiv_backend.evaluation.replay import Interaction, replay, summarise_replay
from lidiv_backend.predictor import Proposal

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
