"""The file that Locust runs: annotators who look, click, accept and submit.

Locust runs it in a process of its own, since it replaces Python's sockets and threads when it is
imported. What to do is in the file that `lidiv_backend.loadtest.plan.VARIABLE` names; every request
is noted, one JSON object a line, see `Heard`.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from locust import FastHttpUser, LoadTestShape, events, task

from lidiv_backend.loadtest.bodies import (
    PlayedClick,
    PlayedTask,
    predict_body,
    submitted_body,
)
from lidiv_backend.loadtest.plan import VARIABLE, Plan, require_loopback

PLAN = Plan.read(Path(os.environ[VARIABLE]))
#: A click that failed is made again so often, each time after a second.
_ATTEMPTS = 3
#: Answers of the first seconds of a step do not count: newcomers all open an image.
_SETTLE_SECONDS = 10.0
# No answer is worth waiting longer for: Label Studio gives up after this.
_TIMEOUT = 100.0


@dataclass(frozen=True, kw_only=True)
class Heard:
    """A request and what came of it.

    Parameters
    ----------
    kind
        ``first`` for the first mask of an image, ``click`` for further ones, ``submit``.
    at
        Seconds since 1970 when it was sent.
    ms
        Until the whole answer was there.
    status
        HTTP status; 0 where there was no answer.
    ok
        Whether it was answered with a mask, or taken.
    attempt
        1, or more where the annotator had to click again.
    annotators
        How many there were.
    region
        The region's id, of answers; the annotation's number, of what was submitted.
    """

    kind: str
    at: float
    ms: float
    status: int
    ok: bool
    attempt: int
    annotators: int
    region: str = ""


class _Notes:
    """What was heard, in memory and in the file."""

    def __init__(self, path: str) -> None:
        self.heard: list[Heard] = []
        self._file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - to the end

    def add(self, heard: Heard) -> None:
        self.heard.append(heard)
        self._file.write(json.dumps(asdict(heard)) + "\n")


NOTES = _Notes(PLAN.events)


def only_here(environment: Any, **_: Any) -> None:
    """Refuse any server but the one of the plan, whatever Locust's command line says."""
    host = environment.host or PLAN.url
    require_loopback(host)
    environment.host = PLAN.url
    # What failed is reported, not punished.
    environment.process_exit_code = 0


events.init.add_listener(only_here)  # type: ignore[no-untyped-call]


class Annotator(FastHttpUser):
    """Takes an image, clicks on a few objects of it, accepts their masks, submits."""

    host = PLAN.url
    connection_timeout = 10.0
    network_timeout = _TIMEOUT
    # The count of those who came before gives each a number of its own.
    _came = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        Annotator._came += 1
        self.number = Annotator._came
        self.random = random.Random(f"{PLAN.seed} {self.number}")  # noqa: S311 - no secret
        self.images = 0

    def on_start(self) -> None:
        """Begin somewhere within a thought, so that not all click at once."""
        time.sleep(self.random.uniform(0, PLAN.thought_seconds))

    @task
    def annotate(self) -> None:
        """Stay with one image, and submit what was accepted."""
        self.images += 1
        # Whoever comes in is in the midst of an image, so that not all open the next one at once.
        share = self.random.uniform(0.2, 1.0) if self.images == 1 else 1.0
        end = time.time() + share * PLAN.image_seconds
        began = time.time()
        number = self.number * 10_000 + self.images
        width, height = PLAN.sizes[number % len(PLAN.sizes)]
        image = PlayedTask(
            number=number, image=f"/data/upload/1/{number}.jpg", width=width, height=height
        )
        is_first = True
        while time.time() < end:
            clicks: list[PlayedClick] = []
            answer: list[dict[str, Any]] = []
            for _ in range(self.random.choice((1, 2, 2, 3, 3, 4, 5))):
                clicks.append(self._click(clicks))
                answer = self._clicked(image, clicks, "first" if is_first else "click") or answer
                is_first = False
                self._think()
            image.accepted += answer
        self._submitted(image, number, time.time() - began)

    def _think(self) -> None:
        time.sleep(PLAN.thought_seconds * self.random.uniform(0.75, 1.25))

    def _click(self, before: list[PlayedClick]) -> PlayedClick:
        """Click on an object anywhere; then around it, to correct its mask."""
        draw = self.random
        name = f"{draw.getrandbits(60):010x}"[:10]
        if not before:
            return PlayedClick(id=name, x=draw.uniform(10, 90), y=draw.uniform(10, 90))
        first = before[0]
        return PlayedClick(
            id=name,
            x=min(max(first.x + draw.gauss(0, 12), 1), 99),
            y=min(max(first.y + draw.gauss(0, 12), 1), 99),
            positive=draw.random() < 0.6,
        )

    def _clicked(
        self, image: PlayedTask, clicks: list[PlayedClick], kind: str
    ) -> list[dict[str, Any]]:
        """Send a click; again where it fails. Gives the region's results."""
        body = predict_body(image, clicks, PLAN.label_config)
        region: list[dict[str, Any]] = []

        def read(answer: Any) -> str:
            results = answer["results"]
            region[:] = results[0]["result"]
            masks = [result for result in region if result["value"].get("rle")]
            if not masks:
                raise ValueError("no mask")
            return str(masks[0]["id"])

        for attempt in range(1, _ATTEMPTS + 1):
            if self._send("/predict", body, kind, attempt, read):
                return region
            time.sleep(1)
        return []

    def _submitted(self, image: PlayedTask, number: int, seconds: float) -> None:
        """Tell what was accepted. Label Studio says this once, whatever comes of it."""
        body = submitted_body(
            image,
            annotation=number,
            annotator=self.number,
            seconds=seconds,
            label_config=PLAN.label_config,
        )
        self._send("/webhook", body, "submit", 1, lambda _: str(number))

    def _send(
        self, path: str, body: Any, kind: str, attempt: int, read: Callable[[Any], str]
    ) -> bool:
        headers = {"X-LiDiv-Secret": PLAN.webhook_secret} if path == "/webhook" else {}
        at, began = time.time(), time.perf_counter()
        status, ok, region = 0, False, ""
        with self.client.post(
            path, json=body, headers=headers, name=kind, catch_response=True
        ) as response:
            status = response.status_code or 0
            try:
                if not 200 <= status < 300:
                    raise ValueError(f"status {status}")
                region = read(response.json())
                ok = True
                response.success()
            except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
                response.failure(str(error))
        NOTES.add(
            Heard(
                kind=kind,
                at=at,
                ms=(time.perf_counter() - began) * 1000,
                status=status,
                ok=ok,
                attempt=attempt,
                annotators=self.environment.runner.user_count if self.environment.runner else 0,
                region=region,
            )
        )
        return ok


class Crowd(LoadTestShape):
    """As many annotators as the plan says: always the same, or more with every step."""

    def tick(self) -> tuple[int, float] | None:
        """Say how many there shall be now; None ends it."""
        elapsed = self._elapsed()
        if elapsed >= PLAN.seconds:
            return None
        if not PLAN.step:
            return PLAN.annotators, PLAN.annotators
        step = int(elapsed // PLAN.step_seconds)
        if step and self._has_broken(step - 1):
            return None
        return PLAN.annotators + step * PLAN.step, max(PLAN.annotators, PLAN.step)

    def _has_broken(self, step: int) -> bool:
        """Tell whether the clicks of a step took too long, or any request failed."""
        begin = self.start_time_of(step) + _SETTLE_SECONDS
        end = self.start_time_of(step + 1)
        these = [heard for heard in NOTES.heard if begin <= heard.at < end]
        if not all(heard.ok for heard in these):
            return True
        times = sorted(heard.ms for heard in these if heard.kind == "click")
        return bool(times) and times[min(int(0.95 * len(times)), len(times) - 1)] > PLAN.limit_ms

    def start_time_of(self, step: int) -> float:
        """When a step began; seconds since 1970."""
        return time.time() - self._elapsed() + step * PLAN.step_seconds

    def _elapsed(self) -> float:
        return float(self.get_run_time())  # type: ignore[no-untyped-call]
