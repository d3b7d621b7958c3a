"""Label Studio and the backend, started together and connected."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lidiv_backend.demo import label_studio
from lidiv_backend.demo.credentials import Credentials, load_or_create
from lidiv_backend.demo.services import (
    RunningService,
    Service,
    require_free_port,
    throwaway_environment,
)
from lidiv_backend.labelstudio.connect import Connection, Wish, connect, open_client
from lidiv_backend.model import read_description, weights_folder
from lidiv_backend.photos import write_photos
from lidiv_backend.weights import fetch_encoder

#: Seconds that the two services get together; a first start makes Label Studio's database.
READY_SECONDS = 600.0


@dataclass(frozen=True, kw_only=True)
class StackSettings:
    """Where the two services live.

    Parameters
    ----------
    folder
        Everything that they keep: databases, photos, logs, credentials.
    label_studio_environment
        Virtual environment that Label Studio is installed in.
    label_studio_port, backend_port
        Ports on the loopback address.
    backend_environment
        Variables that the backend gets besides those of this process, see
        `throwaway_environment`.
    """

    folder: Path
    label_studio_environment: Path
    label_studio_port: int = 8080
    backend_port: int = 9090
    backend_environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Stack:
    """The two services while they run.

    Parameters
    ----------
    label_studio_url, backend_url
        Addresses.
    credentials
        Login, token and secret.
    folder
        What they keep.
    services
        The processes.
    """

    label_studio_url: str
    backend_url: str
    credentials: Credentials
    folder: Path
    services: tuple[RunningService, ...]

    def client(self) -> Any:
        """Make the SDK's client for this Label Studio."""
        return open_client(self.label_studio_url, self.credentials.token)


def fetch_model() -> str | None:
    """Fetch the encoder that the preset of the environment needs, unless it is there.

    Returns
    -------
    str or None
        Its name; None if the model has none.

    Raises
    ------
    WeightsError
        If the preset has no weights, or the encoder cannot be fetched.
    """
    preset = os.environ.get("LIDIV_PRESET") or "default"
    encoder = read_description(weights_folder(preset)).proposal.encoder
    if encoder is not None:
        fetch_encoder(encoder)
    return encoder


@contextmanager
def running_stack(settings: StackSettings) -> Iterator[Stack]:
    """Start Label Studio and the backend, and stop them at the end.

    Parameters
    ----------
    settings
        Where they live; what an earlier run left there is used again.

    Yields
    ------
    Stack
        Both answer.

    Raises
    ------
    PortBusyError
        If a port is taken.
    ServiceError
        If one of them ends or does not become ready; with the end of its log.
    """
    require_free_port(settings.label_studio_port, option="--port-label-studio")
    require_free_port(settings.backend_port, option="--port-backend")
    folder = settings.folder.resolve()
    credentials = load_or_create(folder)
    label_studio_url = f"http://localhost:{settings.label_studio_port}"
    described = (
        label_studio.service(
            environment=settings.label_studio_environment,
            folder=folder,
            port=settings.label_studio_port,
            credentials=credentials,
        ),
        _backend_service(
            folder=folder,
            port=settings.backend_port,
            label_studio_url=label_studio_url,
            credentials=credentials,
            further=settings.backend_environment,
        ),
    )
    with ExitStack() as cleanup:
        services = []
        for each in described:
            running = RunningService(each)
            cleanup.callback(running.stop)
            services.append(running)
        for running in services:
            running.wait_until_ready(seconds=READY_SECONDS)
        yield Stack(
            label_studio_url=label_studio_url,
            backend_url=f"http://localhost:{settings.backend_port}",
            credentials=credentials,
            folder=folder,
            services=tuple(services),
        )


def connect_project(
    stack: Stack, *, title: str, label_config: str | None = None, pictures: Path | None = None
) -> Connection:
    """Make a project with pictures and connect the backend; does nothing twice.

    Parameters
    ----------
    stack
        The running services.
    title
        The project's title.
    label_config
        XML for a new project; the recommended one if None.
    pictures
        Folder of JPEG and PNG files, below the stack's folder; the demo's photos if None.

    Returns
    -------
    Connection
        What is connected.
    """
    client = stack.client()
    connection = connect(
        client,
        Wish(
            backend_url=stack.backend_url,
            title=title,
            label_config=label_config,
            webhook_secret=stack.credentials.webhook_secret,
        ),
        url=stack.label_studio_url,
    )
    if pictures is None:
        pictures = write_photos(stack.folder / "photos")[0].parent
    storages = client.import_storage.local
    present = list(storages.list(project=connection.project_id))
    storage = (
        present[0]
        if present
        else storages.create(
            project=connection.project_id,
            title="Pictures",
            path=str(pictures.resolve()),
            regex_filter=r".*\.(jpg|png)",
            use_blob_urls=True,
        )
    )
    # Files that are tasks already are left out.
    storages.sync(id=storage.id)
    return connection


def _backend_service(
    *,
    folder: Path,
    port: int,
    label_studio_url: str,
    credentials: Credentials,
    further: Mapping[str, str],
) -> Service:
    return Service(
        name="The backend",
        command=(
            sys.executable,
            "-m",
            "lidiv_backend.cli",
            "serve",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ),
        environment=throwaway_environment()
        | dict(further)
        | {
            "LIDIV_LABEL_STUDIO_URL": label_studio_url,
            "LIDIV_LABEL_STUDIO_TOKEN": credentials.token,
            "LIDIV_WEBHOOK_SECRET": credentials.webhook_secret,
            "LIDIV_STATE": str(folder / "backend"),
            "PYTHONUNBUFFERED": "1",
        },
        log_path=folder / "logs" / "backend.log",
        ready_url=f"http://127.0.0.1:{port}/ready",
    )
