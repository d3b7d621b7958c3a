"""How long clicks and webhooks take while the lab's model learns."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from lidiv_backend.clicks import Click

#: A webhook is to be answered within so many seconds; a bound of the backend's histogram.
WEBHOOK_SECONDS = 0.1
# An annotator looks so long before the next click.
_THOUGHT_SECONDS = 1.0
_ROUTE, _HISTOGRAM = "/webhook", "lidiv_request_seconds"


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What was timed on a day.

    Parameters
    ----------
    before, training
        Seconds of single clicks, through Label Studio: while nothing was trained, and while the
        model was.
    webhooks
        How many the backend answered.
    prompt
        How many of these within `WEBHOOK_SECONDS`.
    """

    before: tuple[float, ...] = ()
    training: tuple[float, ...] = ()
    webhooks: int = 0
    prompt: int = 0

    @property
    def rise(self) -> float | None:
        """By what part the median click takes longer while the model is trained."""
        if not self.before or not self.training:
            return None
        return statistics.median(self.training) / statistics.median(self.before) - 1


@dataclass
class ClickTimer:
    """Clicks at random places of one open image, and times each.

    Parameters
    ----------
    click
        Makes a click, and gives the seconds until its mask was there.
    height, width
        Of the image, in pixels.
    count
        So many clicks.
    thought
        Seconds between two of them.
    """

    click: Callable[[Click], float]
    height: int
    width: int
    count: int
    thought: float = _THOUGHT_SECONDS
    # Every click is another one, since what was answered once is remembered.
    _rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def run(self) -> tuple[float, ...]:
        """Give the seconds of each click; one more before them opens the image."""
        if not self.count:
            return ()
        self._next()
        times = []
        for _ in range(self.count):
            # Not to wait for anything: so an annotator works.
            threading.Event().wait(self.thought)
            times.append(self._next())
        return tuple(times)

    def _next(self) -> float:
        x, y = self._rng.integers((self.width, self.height)).tolist()
        return self.click(Click(x=x, y=y, positive=True))


def webhooks_in_time(metrics: str) -> tuple[int, int]:
    """Read from a backend's metrics how many webhooks it answered, and how many in time.

    Parameters
    ----------
    metrics
        What ``/metrics`` says.

    Returns
    -------
    answered, prompt : int
        All, and those within `WEBHOOK_SECONDS`.
    """
    answered = prompt = 0
    for family in text_string_to_metric_families(metrics):
        if family.name != _HISTOGRAM:
            continue
        for sample in family.samples:
            if sample.labels.get("route") != _ROUTE or not sample.name.endswith("_bucket"):
                continue
            bound = float(sample.labels["le"])
            if bound == WEBHOOK_SECONDS:
                prompt = int(sample.value)
            elif bound == float("inf"):
                answered = int(sample.value)
    return answered, prompt
