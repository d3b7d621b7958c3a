"""What Label Studio knows and no webhook told: they are sent once, and lost if nobody hears.

A project's annotations are read through the REST API and compared with what is stored; what is new
or changed is kept, and what is gone is marked so, after Label Studio was asked for it by number: a
token that does not see everything must not delete what others did.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
from label_studio_sdk.core.api_error import ApiError

from lidiv_backend.errors import BadRequestError, LidivError
from lidiv_backend.labelstudio.requests import Task, WebhookAnnotation, parse
from lidiv_backend.learning.store import Store, StoredAnnotation, annotation_digest

_PAGE = 50
#: So many missing annotations are asked for by number at a time, drawn anew each time.
_MAX_QUESTIONS = 200


class ReconcileError(LidivError):
    """Label Studio cannot be asked."""

    status = 502
    kind = "reconcile"


@dataclass(frozen=True, kw_only=True)
class Reconciled:
    """What was made good.

    Parameters
    ----------
    seen
        Annotations that Label Studio has.
    changed
        How many of them were new or other than stored.
    deleted
        How many stored ones were gone.
    """

    seen: int
    changed: int
    deleted: int


def reconcile(store: Store, client: Any, project: str) -> Reconciled:
    """Make good what no webhook told of a project.

    Parameters
    ----------
    store
        The database.
    client
        From `lidiv_backend.labelstudio.connect.open_client`.
    project
        ``"<id>.<created, seconds since 1970>"``, as Label Studio names it in its requests.

    Returns
    -------
    Reconciled

    Raises
    ------
    ReconcileError
        If Label Studio does not answer, or refuses.
    StoreError
        If the database cannot be used.
    """
    known = store.known_annotations(project)
    seen: set[int] = set()
    changed = 0
    try:
        for annotation in _annotations(client, project):
            seen.add(annotation.annotation)
            if known.get(annotation.annotation) != annotation_digest(annotation):
                store.keep_annotations(project, [annotation], deleted=[])
                changed += 1
        missing = sorted(known.keys() - seen)
        if len(missing) > _MAX_QUESTIONS:
            # Those that exist, though this token's list does not show them, must not block the way.
            missing = secrets.SystemRandom().sample(missing, _MAX_QUESTIONS)
        gone = [number for number in missing if _is_gone(client, number)]
    except (ApiError, httpx.HTTPError) as error:
        status = getattr(error, "status_code", None)
        raise ReconcileError(
            f"Label Studio cannot be asked about project {project}: "
            f"{f'status {status}' if status else type(error).__name__}.",
            remedy="Check LIDIV_LABEL_STUDIO_URL and LIDIV_LABEL_STUDIO_TOKEN, and "
            "LIDIV_CA_BUNDLE for an https of your own; webhooks go on being heard.",
        ) from error
    store.keep_annotations(project, [], deleted=gone)
    return Reconciled(seen=len(seen), changed=changed, deleted=len(gone))


def _annotations(client: Any, project: str) -> Iterator[StoredAnnotation]:
    number = int(project.partition(".")[0])
    for item in _tasks(client, number):
        try:
            task = parse(Task, _plain(item))
        except BadRequestError:
            continue
        for entry in task.annotations or ():
            try:
                annotation = parse(WebhookAnnotation, _plain(entry))
            except BadRequestError:
                # Odd ones are tolerated: a webhook may tell of them in a form that is understood.
                continue
            yield StoredAnnotation(
                project=project,
                annotation=annotation.id,
                task=task.id,
                task_data=task.data,
                result=annotation.result,
                was_cancelled=annotation.was_cancelled,
                completed_by=annotation.completed_by,
                lead_time=annotation.lead_time,
            )


def _tasks(client: Any, project: int) -> Iterator[Any]:
    """All tasks of a project.

    The SDK asks for pages until one is empty, and Label Studio answers 404 to the one behind the
    last.
    """
    has_begun = False
    try:
        for item in client.tasks.list(project=project, fields="all", page_size=_PAGE):
            has_begun = True
            yield item
    except ApiError as error:
        if error.status_code != 404 or not has_begun:
            raise


def _plain(item: Any) -> Any:
    """The SDK's objects as the API sent them."""
    return item.model_dump(mode="json", by_alias=True) if hasattr(item, "model_dump") else item


def _is_gone(client: Any, number: int) -> bool:
    try:
        client.annotations.get(id=number)
    except ApiError as error:
        if error.status_code == 404:
            return True
        raise
    return False
