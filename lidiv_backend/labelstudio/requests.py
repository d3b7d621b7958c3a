"""What Label Studio sends to a backend, as typed objects.

Unknown fields are ignored: they differ between versions. Tasks bring all their annotations,
drafts and predictions along; those stay untouched here, so that one damaged region cannot spoil a
click, and are read one by one by `lidiv_backend.labelstudio.results`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator

from lidiv_backend.errors import BadRequestError

_Model = TypeVar("_Model", bound=BaseModel)
# What fits into a database's column.
_Number = Annotated[int, Field(ge=0, lt=2**63)]


class _Received(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


class SetupRequest(_Received):
    """Body of POST ``/setup``.

    Parameters
    ----------
    project
        ``"<id>.<created, seconds since 1970>"``.
    label_config
        The project's label configuration; ``schema`` on the wire.
    hostname
        Address of Label Studio as it sees itself; may be wrong behind a proxy.
    access_token
        Legacy token of the project's creator; refused where legacy tokens are disabled.
    extra_params
        What the project's settings pass to the backend.
    """

    project: str = Field(default="", max_length=64)
    label_config: str = Field(alias="schema")
    hostname: str = ""
    access_token: SecretStr = SecretStr("")
    extra_params: Mapping[str, Any] = Field(default_factory=dict)

    @field_validator("project", "hostname", "access_token", mode="before")
    @classmethod
    def _none_is_empty(cls, value: object) -> object:
        return "" if value is None else value

    @field_validator("extra_params", mode="before")
    @classmethod
    def _only_objects(cls, value: object) -> object:
        # Older versions send a string.
        return value if isinstance(value, Mapping) else {}


class ResultValue(_Received):
    """The ``value`` of a result: the parts that clicks, rectangles and masks have."""

    x: float | None = None
    y: float | None = None
    width: float | None = None
    height: float | None = None
    rotation: float | None = None
    labels: tuple[str, ...] = ()
    keypointlabels: tuple[str, ...] = ()
    rectanglelabels: tuple[str, ...] = ()
    brushlabels: tuple[str, ...] = ()
    format: str = ""
    rle: Any = None


class Result(_Received):
    """One result: a click, half of one, a rectangle, or a mask.

    With a ``Labels`` tag of its own every region comes as two results with one id.
    """

    id: str = Field(default="", max_length=64)
    type: str = ""
    from_name: str = ""
    to_name: str = ""
    value: ResultValue = Field(default_factory=ResultValue)
    is_positive: bool = True
    original_width: int | None = None
    original_height: int | None = None
    image_rotation: float = 0.0

    @field_validator("id", mode="before")
    @classmethod
    def _id_as_text(cls, value: object) -> object:
        return "" if value is None else str(value)

    @field_validator("image_rotation", mode="before")
    @classmethod
    def _none_is_upright(cls, value: object) -> object:
        return 0.0 if value is None else value

    @field_validator("is_positive", mode="before")
    @classmethod
    def _none_is_positive(cls, value: object) -> object:
        return True if value is None else value


class Context(_Received):
    """What an annotator has clicked; ``params.context`` of an interactive call."""

    result: tuple[Result, ...] = ()

    @field_validator("result", mode="before")
    @classmethod
    def _none_is_empty(cls, value: object) -> object:
        return () if value is None else value


class Params(_Received):
    """Beside the tasks: ``context`` is None in a batch call."""

    context: Context | None = None


class Task(_Received):
    """One task of POST ``/predict``.

    Parameters
    ----------
    id
        Label Studio's number of the task.
    data
        The task's data; one of its keys holds the image's address.
    annotations, drafts, predictions
        As they came, not validated.
    """

    id: _Number | None = None
    data: Mapping[str, Any] = Field(default_factory=dict)
    annotations: Any = None
    drafts: Any = None
    predictions: Any = None


class PredictRequest(_Received):
    """Body of POST ``/predict``."""

    tasks: tuple[Task, ...] = Field(min_length=1)
    project: str = Field(default="", max_length=64)
    label_config: str
    params: Params = Field(default_factory=Params)

    @field_validator("project", mode="before")
    @classmethod
    def _project_as_text(cls, value: object) -> object:
        return "" if value is None else str(value)

    @field_validator("params", mode="before")
    @classmethod
    def _none_is_empty(cls, value: object) -> object:
        return {} if value is None else value


class WebhookProject(_Received):
    """The project that an event belongs to.

    Parameters
    ----------
    id
        Label Studio's number of the project.
    created_at
        When it was made; together with `id` it tells projects of several Label Studios apart.
    """

    id: _Number
    created_at: datetime | None = None

    @property
    def key(self) -> str:
        """The project as `SetupRequest` and `PredictRequest` name it."""
        if self.created_at is None:
            return str(self.id)
        return f"{self.id}.{int(self.created_at.timestamp())}"


class WebhookAnnotation(_Received):
    """An annotation of an event; deletions bring the number alone."""

    id: _Number
    task: _Number | None = None
    project: _Number | None = None
    result: tuple[Any, ...] = ()
    was_cancelled: bool = False
    completed_by: _Number | None = None
    lead_time: float | None = None
    updated_at: str = ""

    @field_validator("completed_by", mode="before")
    @classmethod
    def _number_of_user(cls, value: object) -> object:
        # The REST API gives the whole user here, webhooks the number.
        return value.get("id") if isinstance(value, Mapping) else value


class WebhookEvent(_Received):
    """Body of POST ``/webhook``.

    Actions that are really sent are ``ANNOTATION_CREATED``, ``ANNOTATION_UPDATED``,
    ``ANNOTATIONS_DELETED``, ``PROJECT_UPDATED``, ``TASKS_CREATED`` and ``START_TRAINING``; others
    are kept and otherwise ignored.
    """

    action: str = Field(min_length=1, max_length=64)
    project: WebhookProject | None = None
    annotation: WebhookAnnotation | None = None
    annotations: tuple[WebhookAnnotation, ...] = ()
    task: Task | None = None


def parse(model: type[_Model], body: object) -> _Model:
    """Turn a decoded JSON body into a typed object.

    Parameters
    ----------
    model
        `SetupRequest`, `PredictRequest`, `WebhookEvent`, or a part of them.
    body
        The decoded JSON.

    Raises
    ------
    BadRequestError
        If something that is needed is missing or of the wrong type; the message names it.
    """
    try:
        return model.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the body"
        raise BadRequestError(
            f"The request cannot be understood: {where}: {first['msg']}.",
            remedy="Is the sender a Label Studio of version 1.20 or later?",
        ) from error
