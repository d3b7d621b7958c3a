"""Bodies as Label Studio 1.23 sends them, for annotators who are played.

Label Studio resends all clicks of a region at every click, each twice where the labels have a tag
of their own, and with each of them the whole task with all that was accepted on it so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

PROJECT_ID, CREATED = 1, 1795328789
PROJECT = f"{PROJECT_ID}.{CREATED}"
LABEL = "Object"
_WHEN = "2026-11-22T06:27:15.654039Z"


@dataclass(frozen=True, kw_only=True)
class PlayedClick:
    """A click, in per cent of the image's width and height."""

    id: str
    x: float
    y: float
    positive: bool = True


@dataclass(kw_only=True)
class PlayedTask:
    """A task that an annotator has open.

    Parameters
    ----------
    number
        Label Studio's.
    image
        Path of its image.
    width, height
        Of the image, in pixels.
    accepted
        Results that were accepted so far, as the backend answered them.
    """

    number: int
    image: str
    width: int
    height: int
    accepted: list[dict[str, Any]] = field(default_factory=list)


def click_results(task: PlayedTask, clicks: Sequence[PlayedClick]) -> list[dict[str, Any]]:
    """Give the clicks of a region as its context holds them: each as key point and as label."""
    results = []
    for click in clicks:
        common = {
            "original_width": task.width,
            "original_height": task.height,
            "image_rotation": 0,
            "value": {"x": click.x, "y": click.y, "width": 0.26, "labels": [LABEL]},
            "is_positive": click.positive,
            "id": click.id,
        }
        for tag, kind in (("kp", "keypoint"), ("label", "labels")):
            parts = {"from_name": tag, "to_name": "image", "type": kind, "origin": "manual"}
            results.append(common | parts)
    return results


def predict_body(
    task: PlayedTask, clicks: Sequence[PlayedClick], label_config: str
) -> dict[str, Any]:
    """Make the body of an interactive ``/predict``."""
    drafts = [_draft(task)] if task.accepted else []
    return {
        "tasks": [
            {
                "id": task.number,
                "annotations": [],
                "file_upload": task.image.rpartition("/")[2],
                "drafts": drafts,
                "predictions": [],
                "data": {"image": task.image},
                "meta": {},
                "created_at": _WHEN,
                "updated_at": _WHEN,
                "allow_skip": True,
                "inner_id": task.number,
                "total_annotations": 0,
                "cancelled_annotations": 0,
                "total_predictions": 0,
                "comment_count": 0,
                "unresolved_comment_count": 0,
                "last_comment_updated_at": None,
                "project": PROJECT_ID,
                "updated_by": 1,
                "comment_authors": [],
            }
        ],
        "project": PROJECT,
        "label_config": label_config,
        "params": {
            "login": None,
            "password": None,
            "context": {"result": click_results(task, clicks)},
        },
    }


def submitted_body(
    task: PlayedTask, *, annotation: int, annotator: int, seconds: float, label_config: str
) -> dict[str, Any]:
    """Make the body of the webhook that tells of a submitted annotation."""
    return {
        "action": "ANNOTATION_CREATED",
        "annotation": {
            "id": annotation,
            "result": task.accepted,
            "was_cancelled": False,
            "ground_truth": False,
            "created_at": _WHEN,
            "updated_at": _WHEN,
            "draft_created_at": None,
            "lead_time": seconds,
            "prediction": {},
            "result_count": len(task.accepted),
            "unique_id": f"00000000-0000-0000-0000-{annotation:012d}",
            "import_id": None,
            "last_action": None,
            "bulk_created": False,
            "task": task.number,
            "project": PROJECT_ID,
            "completed_by": annotator,
            "updated_by": annotator,
            "parent_prediction": None,
            "parent_annotation": None,
            "last_created_by": None,
        },
        "project": {
            "id": PROJECT_ID,
            "title": "lidiv loadtest",
            "label_config": label_config,
            "created_at": "2026-11-22T06:26:29.000000Z",
        },
        "task": {
            "id": task.number,
            "data": {"image": task.image},
            "meta": {},
            "created_at": _WHEN,
            "updated_at": _WHEN,
            "is_labeled": True,
            "overlap": 1,
            "inner_id": task.number,
            "total_annotations": 1,
            "project": PROJECT_ID,
        },
    }


def _draft(task: PlayedTask) -> dict[str, Any]:
    return {
        "id": task.number,
        "user": "annotator@example.org",
        "created_username": "annotator@example.org, 1",
        "created_ago": "1\u00a0minute",
        "result": task.accepted,
        "lead_time": 10.0,
        "was_postponed": False,
        "import_id": None,
        "created_at": _WHEN,
        "updated_at": _WHEN,
        "task": task.number,
        "annotation": None,
    }
