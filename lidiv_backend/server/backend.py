"""The parts of a running server, put together."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from lidiv_backend.errors import BadRequestError, LidivError
from lidiv_backend.labelstudio.config import parse_label_config
from lidiv_backend.labelstudio.engine import Engine
from lidiv_backend.labelstudio.images import Connection
from lidiv_backend.labelstudio.options import ExtraParamsError, read_options
from lidiv_backend.labelstudio.requests import PredictRequest, SetupRequest, WebhookEvent, parse
from lidiv_backend.labelstudio.service import PredictionService
from lidiv_backend.learning.recording import BeginningLog
from lidiv_backend.learning.registry import SHARED, ModelRegistry, channel_of
from lidiv_backend.learning.runs import RunCause, RunQueue
from lidiv_backend.learning.settings import LearningSettings
from lidiv_backend.learning.store import Failure, Store, StoredAnnotation
from lidiv_backend.observing import observed_by
from lidiv_backend.predictor import EmbeddingCaches
from lidiv_backend.server.background import BackgroundPool
from lidiv_backend.server.connections import find_connection, find_options, image_source
from lidiv_backend.server.engines import EngineRegistry, ProjectEngines
from lidiv_backend.server.logs import request_named
from lidiv_backend.server.memory import MemoryKeeper
from lidiv_backend.server.metrics import (
    CountedAnswers,
    Metrics,
    gauge,
    of_gpu,
    of_learning,
    of_models,
    of_turns,
)
from lidiv_backend.server.promoted import PromotedModel
from lidiv_backend.server.security import START_TRAINING
from lidiv_backend.server.settings import Settings
from lidiv_backend.turns import Asker, Turns, asking

_LOG = logging.getLogger(__name__)
# Label Studio's own secrets, which some events carry.
_PROJECT_SECRETS = ("token", "task_data_login", "task_data_password")
#: Characters of what a failure says that are kept and answered; requests bring names of any length.
MAX_FAILURE_TEXT = 2_000


@dataclass(frozen=True, kw_only=True)
class Backend:
    """The parts of a running server.

    Parameters
    ----------
    settings
        From the environment.
    store
        The database.
    engines
        The models.
    service
        Answers `/predict`.
    background
        Embeds images ahead.
    learning
        How it is learnt from annotations.
    metrics
        What is counted.
    turns
        Who computes next.
    memory
        Gives free memory back.
    projects
        The models of projects that learn by themselves; None where all learn together.
    """

    settings: Settings
    learning: LearningSettings
    store: Store
    engines: EngineRegistry
    service: PredictionService
    background: BackgroundPool
    metrics: Metrics
    turns: Turns
    memory: MemoryKeeper
    projects: ProjectEngines | None = None

    def engines_of(self, project: str) -> EngineRegistry:
        """Give the models that answer a project."""
        return self.engines if self.projects is None else self.projects.of(project)

    def close(self) -> None:
        """Drop what waits in the background, and close the database."""
        self.memory.stop()
        self.background.close()
        self.store.close()

    def connection(self, project: str) -> Connection | None:
        """Find the Label Studio that a project belongs to."""
        return find_connection(self.settings, self.store, project)

    def keep_connection(self, received: SetupRequest) -> None:
        """Note where a project's Label Studio is, and check its label configuration.

        Raises
        ------
        LabelConfigError
            If the label configuration cannot be used; the connection is kept nevertheless.
        """
        has_token = bool(self.settings.label_studio_token.get_secret_value())
        self.store.keep_connection(
            project=received.project,
            hostname=received.hostname,
            access_token="" if has_token else received.access_token.get_secret_value(),
            label_config=received.label_config,
            extra_params=received.extra_params,
        )
        _, problems = read_options(received.extra_params)
        for problem in problems:
            self.keep_failure(
                ExtraParamsError(problem, remedy="Correct it in the project's settings, Model."),
                request_id="",
                route="/setup",
            )
        parse_label_config(received.label_config)

    def predict(
        self, received: PredictRequest, *, request_id: str, connection: Connection | None = None
    ) -> list[Any]:
        """Answer clicks, or a batch of tasks.

        Parameters
        ----------
        received
            The request.
        request_id
            Finds it in the log.
        connection
            The Label Studio that asks; that of the project if not given.

        Returns
        -------
        list
            For each task a prediction as JSON, or a list of them, worst first.

        Raises
        ------
        LidivError
            As `PredictionService.predict`.
        """
        asker = Asker(self.turns, urgent=received.params.context is not None)
        with observed_by(self.metrics), request_named(request_id), asking(asker):
            service = self.service.with_engines(self.engines_of(received.project))
            predictions = service.predict(
                received,
                connection or self.connection(received.project),
                failed=lambda error, task: self.keep_failure(
                    error, request_id=request_id, route="/predict", task=task
                ),
                options=find_options(self.store, received.project),
            )
        return [
            items[0].as_json() if len(items) == 1 else [item.as_json() for item in items]
            for items in predictions
        ]

    def keep_event(self, body: dict[str, Any]) -> None:
        """Write down a webhook's event.

        Parameters
        ----------
        body
            As it came, decoded; Label Studio's secrets are left out.

        Raises
        ------
        BadRequestError
            If it cannot be understood. It is kept nevertheless: Label Studio sends it only once.
        """
        payload = _without_secrets(body)
        try:
            event = parse(WebhookEvent, body)
        except BadRequestError:
            action = str(body.get("action", ""))[:64]
            self.store.keep_event(action=action, project=None, payload=payload)
            raise
        project = event.project.key if event.project else None
        is_deletion = event.action == "ANNOTATIONS_DELETED"
        self.store.keep_event(
            action=event.action,
            project=project,
            payload=payload,
            annotation=_annotation(event, project),
            deleted=[annotation.id for annotation in event.annotations] if is_deletion else [],
        )
        if event.action == START_TRAINING and (project or self.learning.shared):
            channel = SHARED if self.learning.shared else channel_of(project or "")
            RunQueue(self.store).enqueue(channel, RunCause.BUTTON, project=project)

    def keep_failure(
        self, error: Exception, *, request_id: str, route: str, task: int | None = None
    ) -> None:
        """Log a failure, and keep it for the status page."""
        with request_named(request_id):
            self._keep_failure(error, request_id=request_id, route=route, task=task)

    def _keep_failure(
        self, error: Exception, *, request_id: str, route: str, task: int | None
    ) -> None:
        if isinstance(error, LidivError):
            kind, message, remedy = error.kind, error.message, error.remedy
            _LOG.warning("%s: %s: %s", route, kind, error)
        else:
            kind, message = "defect", f"Something unexpected happened: {type(error).__name__}."
            remedy = f"Search the server's log for {request_id}, and report what it says."
            _LOG.error("%s: %s", route, message, exc_info=error)
        self.metrics.failed(kind)
        try:
            self.store.keep_failure(
                Failure(
                    kind=kind,
                    message=shortened(message),
                    remedy=shortened(remedy),
                    request_id=request_id,
                    route=route[:128],
                    task=task,
                )
            )
        # Telling of a failure must not become one.
        except Exception as store_error:
            _LOG.error("The failure is not kept. %s", store_error)


def shortened(text: str) -> str:
    """Cut what a failure says to `MAX_FAILURE_TEXT` characters."""
    return text if len(text) <= MAX_FAILURE_TEXT else f"{text[: MAX_FAILURE_TEXT - 1]}…"


def build_backend(settings: Settings, *, engine: Engine | None = None) -> Backend:
    """Put the parts together, and begin to load the model in the background.

    To be called in the process that serves, after any fork.

    Parameters
    ----------
    settings
        From the environment.
    engine
        Used instead of the preset's model; for tests.

    Returns
    -------
    Backend

    Raises
    ------
    StoreError
        If the database cannot be opened.
    """
    if not settings.label_studio_url:
        _LOG.warning(
            "LIDIV_LABEL_STUDIO_URL is not set: whoever reaches /setup says where Label Studio is."
        )
    learning = LearningSettings.from_environment()
    store = Store(settings.database)
    registry = ModelRegistry(settings.state_folder, base=settings.preset)
    caches = EmbeddingCaches.of(settings.embedding_bytes, settings.window_bytes)
    promoted = PromotedModel(registry, SHARED, device=settings.device, caches=caches)
    # What projects share that learn by themselves is the preset, to which nobody promotes.
    engines = EngineRegistry(
        promoted.load_any if learning.shared else promoted.load_preset,
        name=settings.preset,
        wait_seconds=settings.load_seconds,
        watched=promoted if engine is None and learning.shared else None,
    )
    projects: ProjectEngines | None = None
    if not learning.shared:
        projects = ProjectEngines(
            engines,
            lambda project: PromotedModel(
                registry, channel_of(project), device=settings.device, caches=caches
            ),
            wait_seconds=settings.load_seconds,
            limit=learning.engines,
        )
    background = BackgroundPool()
    metrics, turns, memory = Metrics(), Turns(settings.computations), MemoryKeeper()
    memory.start()
    metrics.look_up(lambda: of_models(engines, settings.preset))
    metrics.look_up(lambda: of_learning(store))
    metrics.look_up(of_gpu)
    metrics.look_up(lambda: of_turns(turns))
    metrics.look_up(
        lambda: [
            gauge(
                "lidiv_background_length",
                "Images that wait to be embedded ahead, or are being.",
                background.length,
            )
        ]
    )
    service = PredictionService(
        engines=engines,
        images=image_source(settings),
        recorder=CountedAnswers(store, metrics),
        keeper=BeginningLog(store),
        background=background,
        memo_bytes=settings.memo_bytes,
    )
    if engine is None:
        engines.start()
    else:
        engines.promote(engine)
    return Backend(
        settings=settings,
        learning=learning,
        store=store,
        engines=engines,
        service=service,
        background=background,
        metrics=metrics,
        turns=turns,
        memory=memory,
        projects=projects,
    )


def _without_secrets(body: dict[str, Any]) -> dict[str, Any]:
    project = body.get("project")
    if not isinstance(project, dict):
        return body
    kept = {name: value for name, value in project.items() if name not in _PROJECT_SECRETS}
    return body | {"project": kept}


def _annotation(event: WebhookEvent, project: str | None) -> StoredAnnotation | None:
    if event.annotation is None or project is None:
        return None
    annotation = event.annotation
    return StoredAnnotation(
        project=project,
        annotation=annotation.id,
        task=annotation.task,
        task_data=event.task.data if event.task else {},
        result=annotation.result,
        was_cancelled=annotation.was_cancelled,
        completed_by=annotation.completed_by,
        lead_time=annotation.lead_time,
    )
