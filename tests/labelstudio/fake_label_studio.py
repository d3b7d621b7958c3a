"""A Label Studio small enough to hold in the head, for tests of what is said to one.

Status codes, bodies and side effects are those that a live Label Studio 1.23.2 showed: the
webhook that a new backend brings, the half-connected backend that a refusal leaves, the texts of
its refusals.
"""

from __future__ import annotations

import itertools
import json
from typing import Any
from urllib.parse import parse_qs

import httpx

URL = "http://labels.test"
TOKEN = "0123456789abcdef0123456789abcdef01234567"
RESERVED = "URL resolves to a reserved network address (block: 127.0.0.0/8)"
EVERYTHING = {"send_for_all_actions": True, "headers": {}, "is_active": True, "actions": []}


class FakeLabelStudio(httpx.BaseTransport):
    """Answers the SDK's requests.

    Parameters
    ----------
    blocks_backends
        Whether ``ML_BLOCK_LOCAL_IP`` is left at its default.
    blocks_webhooks
        Whether ``SSRF_PROTECTION_ENABLED`` is left at its default.
    refusal
        What the validation of a new backend says; empty to accept it.
    """

    def __init__(
        self, *, blocks_backends: bool = False, blocks_webhooks: bool = False, refusal: str = ""
    ) -> None:
        self.blocks_backends = blocks_backends
        self.blocks_webhooks = blocks_webhooks
        self.refusal = refusal
        self.projects: dict[int, dict[str, Any]] = {}
        self.backends: dict[int, dict[str, Any]] = {}
        self.webhooks: dict[int, dict[str, Any]] = {}
        self.tasks: dict[int, dict[str, Any]] = {}
        self.away = False
        self.writes: list[tuple[str, str]] = []
        self._numbers = itertools.count(1)

    def add_project(self, *, title: str = "LiDiv", label_config: str = "<View></View>") -> int:
        number = next(self._numbers)
        self.projects[number] = {"id": number, "title": title, "label_config": label_config}
        return number

    def add_backend(self, project: int, url: str, **fields: Any) -> int:
        number = next(self._numbers)
        self.backends[number] = {
            "id": number,
            "project": project,
            "url": url,
            "state": "CO",
            "is_interactive": False,
            "auth_method": "NONE",
            "model_version": "model-1",
        } | fields
        return number

    def add_webhook(self, project: int, url: str) -> int:
        number = next(self._numbers)
        self.webhooks[number] = EVERYTHING | {
            "id": number,
            "project": project,
            "url": url,
            "send_payload": True,
        }
        return number

    def add_task(self, project: int, number: int, data: dict[str, Any]) -> None:
        self.tasks[number] = {
            "id": number,
            "project": project,
            "data": data,
            "annotations": [],
            "drafts": [],
            "predictions": [],
        }

    def annotate(self, task: int, number: int, **fields: Any) -> dict[str, Any]:
        """Make or change an annotation, as an annotator does; gives it as a webhook has it."""
        told = {"id": number, "task": task, "was_cancelled": False, "lead_time": 1.0} | fields
        # The REST API gives the whole user, webhooks the number.
        shown = told | {"completed_by": {"id": 1, "email": "admin@example.com"}}
        others = [each for each in self.tasks[task]["annotations"] if each["id"] != number]
        self.tasks[task]["annotations"] = [*others, shown]
        return told | {"completed_by": 1}

    def delete_annotation(self, number: int) -> None:
        for task in self.tasks.values():
            task["annotations"] = [each for each in task["annotations"] if each["id"] != number]

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if self.away:
            return _refuse(502, "Bad gateway")
        if request.headers.get("Authorization") != f"Token {TOKEN}":
            return _refuse(401, "Invalid token.")
        if request.method != "GET":
            self.writes.append((request.method, request.url.path))
        body = json.loads(request.content) if request.content else {}
        kind, _, number = request.url.path.strip("/").removeprefix("api/").partition("/")
        query = {name: values[0] for name, values in parse_qs(request.url.query.decode()).items()}
        if kind == "current-user":
            return httpx.Response(200, json={"id": 1, "email": "admin@example.com"})
        if kind == "tasks":
            return self._tasks(query)
        if kind == "annotations":
            known = [each for task in self.tasks.values() for each in task["annotations"]]
            found = [each for each in known if each["id"] == int(number)]
            return httpx.Response(200, json=found[0]) if found else _refuse(404, "Not found.")
        table = {"projects": self.projects, "ml": self.backends, "webhooks": self.webhooks}[kind]
        if number:
            return self._one(request.method, table, int(number), body)
        if request.method == "POST":
            return getattr(self, f"_create_{kind}")(body)
        if kind == "projects":
            if query.get("page", "1") != "1":
                return _refuse(404, "Invalid page.")
            found = [each for each in table.values() if query.get("title", "") in each["title"]]
            return httpx.Response(200, json={"count": len(found), "results": found})
        rows = [each for each in table.values() if each["project"] == int(query["project"])]
        return httpx.Response(200, json=rows)

    def _tasks(self, query: dict[str, str]) -> httpx.Response:
        rows = [each for each in self.tasks.values() if each["project"] == int(query["project"])]
        size, page = int(query["page_size"]), int(query.get("page", "1"))
        shown = rows[(page - 1) * size : page * size]
        if not shown and page > 1:  # as Django REST framework's paginator has it
            return _refuse(404, "Invalid page.")
        total = len(rows)
        totals = {"total": total, "total_annotations": total, "total_predictions": 0}
        return httpx.Response(200, json=totals | {"tasks": shown})

    def _one(
        self, method: str, table: dict[int, dict[str, Any]], number: int, body: dict[str, Any]
    ) -> httpx.Response:
        if number not in table:
            return _refuse(404, "No Project matches the given query.")
        if method == "DELETE":
            del table[number]
            return httpx.Response(204)
        if method == "PATCH":
            table[number].update(body)
        return httpx.Response(200, json=table[number])

    def _create_projects(self, body: dict[str, Any]) -> httpx.Response:
        number = self.add_project(**body)
        return httpx.Response(201, json=self.projects[number])

    def _create_webhooks(self, body: dict[str, Any]) -> httpx.Response:
        if "." not in body["url"] and "localhost" not in body["url"]:
            return _refuse(400, "Validation error", url=["Enter a valid URL."])
        if self.blocks_webhooks:
            return _refuse(403, RESERVED)
        number = self.add_webhook(body["project"], body["url"])
        self.webhooks[number].update(body)
        return httpx.Response(201, json=self.webhooks[number])

    def _create_ml(self, body: dict[str, Any]) -> httpx.Response:
        if self.blocks_backends:
            return _refuse(403, RESERVED)
        if self.refusal:
            return _refuse(400, "Validation error", non_field_errors=[self.refusal])
        number = self.add_backend(**body)
        target = body["url"].rstrip("/") + "/webhook"
        if all(each["url"] != target for each in self.webhooks.values()):
            if self.blocks_webhooks:
                return _refuse(403, RESERVED)  # and the backend stays
            self.add_webhook(body["project"], target)
        return httpx.Response(201, json=self.backends[number])


def _refuse(status: int, detail: str, **errors: list[str]) -> httpx.Response:
    body = {"status_code": status, "version": "1.23.2", "detail": detail, "exc_info": None}
    return httpx.Response(status, json=body | ({"validation_errors": errors} if errors else {}))
