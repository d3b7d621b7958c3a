"""`lidiv connect` against a real Label Studio: what the fake one of the unit tests cannot know."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from label_studio_sdk.core.api_error import ApiError

from lidiv_backend.demo import label_studio
from lidiv_backend.demo.credentials import Credentials, load_or_create
from lidiv_backend.demo.services import RunningService
from lidiv_backend.demo.stack import READY_SECONDS, Stack, connect_project
from lidiv_backend.labelstudio.connect import (
    ConnectError,
    Wish,
    connect,
    open_client,
    recommended_label_config,
)
from tests.browser.conftest import free_ports

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def half_open(
    label_studio_environment: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Credentials]]:
    """Start a Label Studio with the first of the two variables only, which is the trap."""
    folder = tmp_path_factory.mktemp("half-open")
    (port,) = free_ports(1)
    credentials = load_or_create(folder)
    service = label_studio.service(
        environment=label_studio_environment, folder=folder, port=port, credentials=credentials
    )
    environment = {
        name: value
        for name, value in service.environment.items()
        if name != "SSRF_PROTECTION_ENABLED"
    }
    running = RunningService(dataclasses.replace(service, environment=environment))
    try:
        running.wait_until_ready(seconds=READY_SECONDS)
        yield f"http://localhost:{port}", credentials
    finally:
        running.stop()


def test_half_connected_backend_is_cleaned_up(
    stack: Stack, half_open: tuple[str, Credentials]
) -> None:
    url, credentials = half_open
    client = open_client(url, credentials.token)
    config = recommended_label_config()
    project = client.projects.create(title="Half", label_config=config).id
    with pytest.raises(ApiError, match="reserved network address"):
        client.ml.create(project=project, url=stack.backend_url)
    assert [each.url for each in client.ml.list(project=project)] == [stack.backend_url]

    wish = Wish(backend_url=stack.backend_url, project_id=project)
    with pytest.raises(ConnectError) as refused:
        connect(client, wish, url=url)

    assert "SSRF_PROTECTION_ENABLED=false" in str(refused.value)
    assert client.ml.list(project=project) == []
    assert client.webhooks.list(project=str(project)) == []


def test_unreachable_backend_leaves_nothing(stack: Stack) -> None:
    client = stack.client()
    project = client.projects.create(title="Nobody there").id
    (port,) = free_ports(1)
    wish = Wish(backend_url=f"http://localhost:{port}", project_id=project)
    with pytest.raises(ConnectError, match="lidiv serve"):
        connect(client, wish, url=stack.label_studio_url)
    assert client.ml.list(project=project) == []
    assert client.webhooks.list(project=str(project)) == []


def test_connecting_twice_changes_nothing(stack: Stack) -> None:
    first = connect_project(stack, title="Twice")
    second = connect_project(stack, title="Twice")
    assert first.changes
    assert second.changes == ()
    assert second.backend_id == first.backend_id
    client = stack.client()
    assert len(list(client.tasks.list(project=first.project_id))) >= 6
    (webhook,) = client.webhooks.list(project=str(first.project_id))
    assert webhook.send_for_all_actions is False


def test_personal_access_token(stack: Stack) -> None:
    made = requests.post(
        f"{stack.label_studio_url}/api/token/",
        headers={"Authorization": f"Token {stack.credentials.token}"},
        timeout=30,
    )
    client = open_client(stack.label_studio_url, made.json()["token"])
    wish = Wish(
        backend_url=stack.backend_url,
        title="Personal",
        webhook_secret=stack.credentials.webhook_secret,
    )
    assert connect(client, wish, url=stack.label_studio_url).changes


def test_wrong_token(stack: Stack) -> None:
    client = open_client(stack.label_studio_url, "f" * 40)
    with pytest.raises(ConnectError, match="does not accept the token"):
        connect(client, Wish(backend_url=stack.backend_url), url=stack.label_studio_url)
