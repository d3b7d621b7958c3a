"""The study in Label Studio: a project for each model, a task for each thing to do."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from tqdm import tqdm

from lidiv_backend.labelstudio.connect import (
    ConnectError,
    Wish,
    connect,
    explained,
    recommended_label_config,
)
from lidiv_backend.learning.files import read_json, write_json
from lidiv_backend.user_study.plan import StudyPlan, StudyTask

_PROJECTS = "projects.json"
_INSTRUCTION = (
    "Segment the object that is tinted in the second picture, by clicks on the first: Auto-Detect "
    "on, then a click on the object; Alt and a click says that something does not belong to it. "
    "Submit when the mask fits well, or after 20 clicks."
)


@dataclass(frozen=True, kw_only=True)
class StudyProjects:
    """Where the study is in Label Studio.

    Parameters
    ----------
    label_studio
        Its address.
    projects
        Label of a model -> number of its project.
    tasks
        Key of a task -> Label Studio's number of it.
    """

    label_studio: str
    projects: Mapping[str, int]
    tasks: Mapping[str, int]


def study_label_config() -> str:
    """Write the label config: the image that is clicked, and beside it the wanted object."""
    view = ElementTree.fromstring(recommended_label_config())  # noqa: S314 - our own XML
    view.set("style", "display: flex; flex-wrap: wrap; gap: 1em")
    header = ElementTree.Element("Header", value=_INSTRUCTION)
    view.insert(0, header)
    view.append(ElementTree.Element("Image", name="target", value="$target"))
    return ElementTree.tostring(view, encoding="unicode")


def create_projects(
    client: Any,
    plan: StudyPlan,
    folder: Path,
    *,
    url: str,
    webhook_secret: str = "",
    basic_auth: tuple[str, str] | None = None,
    quiet: bool = False,
) -> StudyProjects:
    """Make projects and tasks; what is there already is left as it is.

    Parameters
    ----------
    client
        From `lidiv_backend.labelstudio.connect.open_client`.
    plan
        The study.
    folder
        With its pictures; gets the worklists.
    url
        Label Studio's address as participants open it.
    webhook_secret, basic_auth
        As in `Wish`.
    quiet
        Show no progress bar.

    Raises
    ------
    ConnectError
        If Label Studio refuses.
    """
    projects: dict[str, int] = {}
    tasks: dict[str, int] = {}
    bar = tqdm(total=len(plan.tasks), unit="task", disable=quiet)
    with bar:
        # Label Studio takes files only where tasks have one image, and these have two.
        title = f"{plan.models[0].title.rpartition(' ')[0]}: pictures"
        with explained(url):
            pictures = _Pictures(client, _ensure_pictures(client, title), folder / "pictures")
        for model in plan.models:
            connection = connect(
                client,
                Wish(
                    backend_url=model.backend,
                    title=model.title,
                    label_config=study_label_config(),
                    webhook_secret=webhook_secret,
                    basic_auth=basic_auth,
                ),
                url=url,
            )
            projects[model.label] = connection.project_id
            own = [task for task in plan.tasks if task.model == model.label]
            with explained(url):
                tasks |= _ensure_tasks(client, connection.project_id, own, pictures, bar)
    made = StudyProjects(label_studio=url.rstrip("/"), projects=projects, tasks=tasks)
    write_json(folder / _PROJECTS, vars(made))
    _write_worklists(plan, made, folder)
    return made


def read_projects(folder: Path) -> StudyProjects:
    """Read where a study is in Label Studio.

    Raises
    ------
    StorageError
        If it was not made yet.
    """
    return StudyProjects(**read_json(folder / _PROJECTS))


def _ensure_pictures(client: Any, title: str) -> int:
    """Number of the project that keeps the files."""
    found = [each.id for each in client.projects.list(title=title) if each.title == title]
    if found:
        return int(found[0])
    config = '<View><Image name="image" value="$image"/></View>'
    return int(client.projects.create(title=title, label_config=config).id)


class _Pictures:
    """Files in Label Studio, each uploaded when it is first asked for."""

    def __init__(self, client: Any, project: int, folder: Path) -> None:
        self._client = client
        self._project = project
        self._folder = folder
        self._uploaded: dict[str, str] = {}

    def address(self, name: str) -> str:
        if name not in self._uploaded:
            self._uploaded[name] = self._upload(self._folder / name)
        return self._uploaded[name]

    def _upload(self, path: Path) -> str:
        # The SDK has no method for it; its own client knows how to log in.
        answer = self._client._client_wrapper.httpx_client.request(
            f"api/projects/{self._project}/import",
            method="POST",
            params={"commit_to_project": "false"},
            files={path.name: (path.name, path.read_bytes(), "image/png")},
        )
        body = answer.json() if answer.status_code < 300 else {}
        numbers = body.get("file_upload_ids") or []
        if not numbers:
            raise ConnectError(
                f"Label Studio did not take {path.name} (status {answer.status_code}).",
                remedy="Look into its log; it may be full, or take no files of this size.",
            )
        return f"/data/{self._client.files.get(id=numbers[0]).file}"


def _ensure_tasks(
    client: Any, project: int, tasks: list[StudyTask], pictures: _Pictures, bar: Any
) -> dict[str, int]:
    """Numbers of a project's tasks by their keys; makes those that are missing."""
    found = {
        str(task.data["study"]): int(task.id)
        for task in client.tasks.list(project=project)
        if isinstance(task.data, dict) and "study" in task.data
    }
    bar.update(sum(task.key in found for task in tasks))
    for task in tasks:
        if task.key in found:
            continue
        data = {
            "image": pictures.address(f"{task.object}.png"),
            "target": pictures.address(f"{task.object}-target.png"),
            "study": task.key,
        }
        made = client.projects.import_tasks(id=project, request=[data], return_task_ids=True)
        found[task.key] = int(made.task_ids[0])
        bar.update()
    return {task.key: found[task.key] for task in tasks}


def _write_worklists(plan: StudyPlan, made: StudyProjects, folder: Path) -> None:
    """Write a page for each participant: their tasks, in their order."""
    for participant in sorted({task.participant for task in plan.tasks}):
        own = [task for task in plan.tasks if task.participant == participant]
        items = []
        for task in own:
            project, number = made.projects[task.model], made.tasks[task.key]
            link = f"{made.label_studio}/projects/{project}/data?task={number}"
            items.append(f'<li><a href="{html.escape(link)}">Task {task.place}</a></li>')
        page = (
            '<!doctype html><html lang="en"><meta charset="utf-8">'
            f"<title>Participant {participant}</title><h1>Participant {participant}</h1>"
            f"<p>{html.escape(_INSTRUCTION)}</p><p>Please do the tasks in this order.</p>"
            f"<ol>{''.join(items)}</ol></html>\n"
        )
        (folder / f"participant-{participant}.html").write_text(page, encoding="utf-8")
