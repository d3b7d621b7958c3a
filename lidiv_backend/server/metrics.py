"""What Prometheus reads at ``/metrics``.

What happens is counted as it happens; what is the case is looked up when somebody asks. Each
application has a registry of its own. Where several processes serve (``LIDIV_WORKERS``), they share
what was counted in files (``PROMETHEUS_MULTIPROC_DIR``, which the settings of gunicorn make), and
what is looked up is that of the process which answers.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import itertools
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from lidiv_backend.errors import LidivError
from lidiv_backend.labelstudio.service import Answer
from lidiv_backend.learning.counts import accepted_clicks, runs_by_state
from lidiv_backend.learning.recording import AnswerLog
from lidiv_backend.learning.runs import RunState
from lidiv_backend.learning.store import Store
from lidiv_backend.server.engines import EngineRegistry
from lidiv_backend.turns import Turns

_LOG = logging.getLogger(__name__)
CONTENT_TYPE = CONTENT_TYPE_LATEST
_STAGE_SECONDS = (
    0.001,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.2,
    0.35,
    0.5,
    0.75,
    1,
    1.5,
    2.5,
    5,
    10,
    30,
)
_REQUEST_SECONDS = (0.005, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2.5, 5, 10, 30, 100)
_CLICKS = (1, 2, 3, 4, 5, 6, 8, 10, 15, 20)


class Metrics:
    """What is counted, and what is looked up; a `lidiv_backend.observing.Observer`."""

    def __init__(self) -> None:
        self._counted = CollectorRegistry()
        self._looked_up = CollectorRegistry()
        self._shared = "PROMETHEUS_MULTIPROC_DIR" in os.environ
        ProcessCollector(registry=self._looked_up)
        counted = self._counted
        self._stages = Histogram(
            "lidiv_stage_seconds",
            "From an image's address to the answer for a click.",
            ["stage"],
            buckets=_STAGE_SECONDS,
            registry=counted,
        )
        self._seconds = Histogram(
            "lidiv_request_seconds",
            "How long requests took.",
            ["route"],
            buckets=_REQUEST_SECONDS,
            registry=counted,
        )
        self._requests = Counter(
            "lidiv_requests", "Requests that were answered.", ["route", "status"], registry=counted
        )
        self._in_progress = Gauge(
            "lidiv_requests_in_progress",
            "Requests that are being answered.",
            multiprocess_mode="livesum",
            registry=counted,
        )
        self._caches = Counter(
            "lidiv_cache_requests",
            "Whether a cache had what was asked for.",
            ["cache", "result"],
            registry=counted,
        )
        self._clicks = Counter(
            "lidiv_clicks",
            "Clicks by what they meant (positive, negative, next), or overtaken by newer ones.",
            ["kind"],
            registry=counted,
        )
        self._failures = Counter("lidiv_failures", "Failures by kind.", ["kind"], registry=counted)

    def stage_took(self, stage: str, seconds: float) -> None:
        """Count how long a stage took."""
        self._stages.labels(stage).observe(seconds)

    def cache_asked(self, cache: str, *, hit: bool) -> None:
        """Count whether a cache had what was asked for."""
        self._caches.labels(cache, "hit" if hit else "miss").inc()

    def click_dropped(self) -> None:
        """Count a click that a newer one has overtaken."""
        self.clicked("overtaken")

    def request_began(self) -> None:
        """Count a request that has come."""
        self._in_progress.inc()

    def request_ended(self) -> None:
        """Count a request that has gone, however it ended."""
        self._in_progress.dec()

    def answered(self, route: str | None, status: int, seconds: float) -> None:
        """Count an answer.

        Parameters
        ----------
        route
            The rule that fits; None where there is none, so that nobody can make up new ones.
        status
            Of HTTP.
        seconds
            How long it took.
        """
        self._requests.labels(route or "none", status).inc()
        self._seconds.labels(route or "none").observe(seconds)

    def clicked(self, kind: str) -> None:
        """Count a click that was answered: ``positive``, ``negative`` or ``next``."""
        self._clicks.labels(kind).inc()

    def failed(self, kind: str) -> None:
        """Count a failure."""
        self._failures.labels(kind).inc()

    def look_up(self, look: Callable[[], Iterable[Metric]]) -> None:
        """Have something looked up whenever somebody asks; what cannot be is left out then."""
        self._looked_up.register(_Lookup(look))

    def render(self) -> bytes:
        """Give all of it, as `CONTENT_TYPE`."""
        counted = self._counted
        if self._shared:
            counted = CollectorRegistry()
            MultiProcessCollector(counted)  # type: ignore[no-untyped-call]
        return generate_latest(counted) + generate_latest(self._looked_up)


class _Lookup(Collector):
    def __init__(self, look: Callable[[], Iterable[Metric]]) -> None:
        self._look = look

    def describe(self) -> Iterable[Metric]:
        # Nothing is looked up when it is registered.
        return ()

    def collect(self) -> Iterable[Metric]:
        try:
            return list(self._look())
        except LidivError as error:
            _LOG.warning("Some metrics are left out. %s", error)
            return ()


class CountedAnswers(AnswerLog):
    """Counts clicks, and keeps the answers.

    Parameters
    ----------
    store
        The database.
    metrics
        Counts.
    """

    def __init__(self, store: Store, metrics: Metrics) -> None:
        super().__init__(store)
        self._metrics = metrics

    def keep_answer(self, answer: Answer) -> None:
        """Keep an answer."""
        if answer.interactive and not answer.beside and answer.showing.cycling:
            last = answer.prompt.clicks[-1]
            kind = "positive" if last.positive else "negative"
            self._metrics.clicked("next" if answer.showing.cycling[-1] else kind)
        super().keep_answer(answer)


def of_models(engines: EngineRegistry, preset: str) -> Iterator[Metric]:
    """Say which models are held, the one in use first."""
    release = importlib.metadata.version("lidiv-backend")
    build = InfoMetricFamily("lidiv_build", "The release of LiDiv.")
    build.add_metric([], {"release": release})
    yield build
    ready = GaugeMetricFamily("lidiv_model_ready", "Whether a model is loaded.")
    ready.add_metric([], float(engines.is_ready))
    yield ready
    models = GaugeMetricFamily(
        "lidiv_model_info",
        "Models that are held; 1 for the one in use, 0 for those that interactions began with.",
        labels=["version", "preset"],
    )
    for place, version in enumerate(engines.versions):
        models.add_metric([version, preset], float(place == 0))
    yield models


def of_learning(store: Store) -> Iterator[Metric]:
    """Say what the database knows; it is the same for all processes and replicas."""
    runs = GaugeMetricFamily(
        "lidiv_training_runs", "Training runs, all processes together.", labels=["state"]
    )
    counted = runs_by_state(store)
    for state in RunState:
        runs.add_metric([state.value], counted.get(state.value, 0))
    yield runs
    accepted = accepted_clicks(store)
    masks = sorted(accepted.masks.items())
    clicks = HistogramMetricFamily(
        "lidiv_clicks_per_accepted_mask",
        "Clicks that the masks of accepted annotations needed, all processes together.",
    )
    bounds = [*map(float, _CLICKS), float("inf")]
    clicks.add_metric(
        [],
        [
            ("+Inf" if bound == float("inf") else str(bound), _up_to(masks, bound))
            for bound in bounds
        ],
        sum_value=sum(number * count for number, count in masks),
    )
    yield clicks
    steps = CounterMetricFamily(
        "lidiv_accepted_proposals_stepped",
        "Clicks on accepted masks that asked for the next proposal, all processes together.",
    )
    steps.add_metric([], accepted.steps)
    yield steps


def of_turns(turns: Turns) -> Iterator[Metric]:
    """Say how many threads wait for their turn to compute."""
    waiting = GaugeMetricFamily(
        "lidiv_turns_waiting", "Computations that wait for their turn.", labels=["step"]
    )
    for step, count in turns.waiting().items():
        waiting.add_metric([step.value], count)
    yield waiting


def of_gpu() -> Iterator[Metric]:
    """Say how full the GPUs are that this process uses; nothing where it uses none."""
    # Looking must neither load torch nor wake a GPU.
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return
    memory = GaugeMetricFamily(
        "lidiv_gpu_memory_bytes",
        "Memory of the GPUs: tensors of this process, what it holds, and free for anybody.",
        labels=["device", "kind"],
    )
    for device in range(torch.cuda.device_count()):
        held = torch.cuda.memory_reserved(device)
        if not held:
            continue
        memory.add_metric([str(device), "tensors"], torch.cuda.memory_allocated(device))
        memory.add_metric([str(device), "held"], held)
        with contextlib.suppress(RuntimeError):
            free, total = torch.cuda.mem_get_info(device)
            memory.add_metric([str(device), "free"], free)
            memory.add_metric([str(device), "total"], total)
    yield memory


def gauge(name: str, documentation: str, value: float) -> Metric:
    """Make a metric of a single number that is looked up."""
    family = GaugeMetricFamily(name, documentation)
    family.add_metric([], value)
    return family


def _up_to(masks: Iterable[tuple[int, int]], bound: float) -> int:
    return sum(count for _, count in itertools.takewhile(lambda item: item[0] <= bound, masks))
