"""The parts of a running server, put together."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr

from lidiv_backend.errors import BadRequestError, LidivError
from lidiv_backend.labelstudio.config import parse_label_config
from lidiv_backend.labelstudio.engine import Engine
from lidiv_backend.labelstudio.images import Connection, FetchLimits, ImageSource
from lidiv_backend.labelstudio.requests import PredictRequest, SetupRequest, WebhookEvent, parse
from lidiv_backend.labelstudio.service import PredictionService
from lidiv_backend.learning.recording import AnswerLog
from lidiv_backend.learning.registry import SHARED, ModelRegistry
from lidiv_backend.learning.store import Failure, Store, StoredAnnotation, StoreError
from lidiv_backend.server.background import BackgroundPool
from lidiv_backend.server.engines import EngineRegistry
from lidiv_backend.server.promoted import PromotedModel
from lidiv_backend.server.settings import Settings

_LOG = logging.getLogger(__name__)
# Label Studio's own secrets, which some events carry.
_PROJECT_SECRETS = ("token", "task_data_login", "task_data_password")


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
    """

    settings: Settings
    store: Store
    engines: EngineRegistry
    service: PredictionService
    background: BackgroundPool

    def close(self) -> None:
        """Drop what waits in the background, and close the database."""
        self.background.close()
        self.store.close()

    def connection(self, project: str) -> Connection | None:
        """Find the Label Studio that a project belongs to."""
        try:
            stored = self.store.connection(project)
        except StoreError as error:
            _LOG.error("The connection of a project cannot be looked up. %s", error)
            stored = None
        settings = self.settings
        if settings.label_studio_url:
            token = settings.label_studio_token
            if not token.get_secret_value() and stored is not None:
                token = SecretStr(stored.access_token)
            return Connection(url=settings.label_studio_url, token=token, configured=True)
        if stored is None or not stored.hostname:
            return None
        return Connection(url=stored.hostname, token=SecretStr(stored.access_token))

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
        predictions = self.service.predict(
            received,
            connection or self.connection(received.project),
            failed=lambda error, task: self.keep_failure(
                error, request_id=request_id, route="/predict", task=task
            ),
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

    def keep_failure(
        self, error: Exception, *, request_id: str, route: str, task: int | None = None
    ) -> None:
        """Log a failure, and keep it for the status page."""
        if isinstance(error, LidivError):
            kind, message, remedy = error.kind, error.message, error.remedy
            _LOG.warning("%s %s: %s: %s", request_id, route, kind, error)
        else:
            kind, message = "defect", f"Something unexpected happened: {type(error).__name__}."
            remedy = f"Search the server's log for {request_id}, and report what it says."
            _LOG.error("%s %s: %s", request_id, route, message, exc_info=error)
        try:
            self.store.keep_failure(
                Failure(
                    kind=kind,
                    message=message,
                    remedy=remedy,
                    request_id=request_id,
                    route=route[:128],
                    task=task,
                )
            )
        # Telling of a failure must not become one.
        except Exception as store_error:
            _LOG.error("%s the failure is not kept. %s", request_id, store_error)


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
    store = Store(settings.database)
    promoted = PromotedModel(
        ModelRegistry(settings.state_folder, base=settings.preset), SHARED, device=settings.device
    )
    engines = EngineRegistry(
        promoted.load_any,
        name=settings.preset,
        wait_seconds=settings.load_seconds,
        watched=promoted if engine is None else None,
    )
    background = BackgroundPool()
    images = ImageSource(
        allowed_hosts=settings.allowed_image_hosts,
        limits=FetchLimits(
            max_bytes=settings.max_image_bytes,
            max_pixels=settings.max_pixels,
            total_seconds=settings.image_seconds,
        ),
        cache_bytes=settings.cache_bytes,
        ca_bundle=str(settings.ca_bundle) if settings.ca_bundle else None,
    )
    service = PredictionService(
        engines=engines,
        images=images,
        recorder=AnswerLog(store),
        background=background,
        memo_bytes=settings.cache_bytes,
    )
    if engine is None:
        engines.start()
    else:
        engines.promote(engine)
    return Backend(
        settings=settings, store=store, engines=engines, service=service, background=background
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
