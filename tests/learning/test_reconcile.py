from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from label_studio_sdk.core.api_error import ApiError

from lidiv_backend.learning.reconcile import ReconcileError, reconcile
from tests.learning.lab import PROJECT, Lab


@dataclass
class Knows:
    """Stands for the SDK's client: what Label Studio has, task by task."""

    items: dict[int, dict[str, Any]] = field(default_factory=dict)
    #: Annotations that exist, though this token's list does not show them.
    hidden: set[int] = field(default_factory=set)
    status: int = 0
    asked: list[int] = field(default_factory=list)

    @property
    def tasks(self) -> Knows:
        return self

    @property
    def annotations(self) -> Knows:
        return self

    def list(self, *, project: int, fields: str, page_size: int) -> Iterator[dict[str, Any]]:
        assert (project, fields) == (7, "all")
        if self.status:
            raise ApiError(status_code=self.status, body={})
        yield from self.items.values()

    def get(self, *, id: int) -> dict[str, Any]:
        self.asked.append(id)
        if id not in self.hidden:
            raise ApiError(status_code=404, body={})
        return {}

    def add(self, lab: Lab, task: int, **changes: Any) -> None:
        told = lab.annotation(task)
        annotation = {
            "id": told.annotation,
            "task": task,
            "result": told.result,
            "was_cancelled": False,
            # The REST API gives the whole user.
            "completed_by": {"id": 1, "email": "a@example.test"},
            "lead_time": 2.0,
        }
        self.items[task] = {
            "id": task,
            "data": dict(told.task_data),
            "annotations": [annotation | changes],
            "drafts": [],
            "predictions": [],
        }


@pytest.fixture
def label_studio() -> Knows:
    return Knows()


def stored(lab: Lab) -> list[int | None]:
    return [annotation.task for annotation in lab.store.accepted_annotations([PROJECT])]


def test_what_no_webhook_told_is_made_good(lab: Lab, label_studio: Knows) -> None:
    lab.accept(0)  # told, and still so
    lab.accept(1)  # told, and changed since
    lab.accept(2)  # told, and deleted since
    label_studio.add(lab, 0)
    label_studio.add(lab, 1, result=[])
    label_studio.add(lab, 3)  # never told
    label_studio.add(lab, 4, was_cancelled=True)
    done = reconcile(lab.store, label_studio, PROJECT)
    assert (done.seen, done.changed, done.deleted) == (4, 3, 1)
    assert stored(lab) == [0, 1, 3]
    changed = lab.store.annotation(PROJECT, 1001)
    assert changed is not None
    assert changed.result == []
    new = lab.store.annotation(PROJECT, 1003)
    assert new == lab.annotation(3)
    again = reconcile(lab.store, label_studio, PROJECT)
    assert (again.changed, again.deleted) == (0, 0)


def test_what_a_token_does_not_see_is_not_deleted(lab: Lab, label_studio: Knows) -> None:
    lab.accept(0)
    lab.accept(1)
    label_studio.hidden = {1000}
    done = reconcile(lab.store, label_studio, PROJECT)
    assert done.deleted == 1
    assert sorted(label_studio.asked) == [1000, 1001]
    assert stored(lab) == [0]


def test_what_was_taken_for_deleted_comes_back(lab: Lab, label_studio: Knows) -> None:
    lab.accept(0)
    lab.store.keep_annotations(PROJECT, [], deleted=[1000])
    assert stored(lab) == []
    label_studio.add(lab, 0)
    reconcile(lab.store, label_studio, PROJECT)
    assert stored(lab) == [0]


def test_odd_annotations_are_passed_over(lab: Lab, label_studio: Knows) -> None:
    label_studio.add(lab, 0, id="nonsense")
    label_studio.add(lab, 1)
    label_studio.items[2] = {"id": "x"}
    label_studio.items[3] = {"id": 3, "data": {}, "annotations": None}
    assert reconcile(lab.store, label_studio, PROJECT).seen == 1


@pytest.mark.parametrize("status", [401, 404, 500])
def test_a_refusal_deletes_nothing(lab: Lab, label_studio: Knows, status: int) -> None:
    lab.accept(0)
    label_studio.status = status
    with pytest.raises(ReconcileError, match=f"status {status}"):
        reconcile(lab.store, label_studio, PROJECT)
    assert stored(lab) == [0]


def test_a_label_studio_that_is_away_deletes_nothing(lab: Lab) -> None:
    class Away(Knows):
        def list(self, **_: Any) -> Iterator[dict[str, Any]]:
            raise httpx.ConnectError("refused")

    lab.accept(0)
    with pytest.raises(ReconcileError, match="ConnectError"):
        reconcile(lab.store, Away(), PROJECT)
    assert stored(lab) == [0]
