"""Real services and a real Chromium, the services started as `lidiv demo` starts them."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lidiv_backend.demo.stack import Stack, StackSettings, fetch_model, running_stack

if TYPE_CHECKING:
    from playwright.sync_api import Page

ROOT = Path(__file__).parents[2]
LABEL_STUDIO = ROOT / ".venv-labelstudio"
CHROMIUM = os.environ.get("LIDIV_CHROMIUM", "/usr/bin/chromium")
CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def free_ports(number: int) -> list[int]:
    """Find ports that nothing listens on."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@pytest.fixture(scope="session")
def label_studio_environment() -> Path:
    """Skip where Label Studio is not installed."""
    if not (LABEL_STUDIO / "bin" / "label-studio").exists():
        pytest.skip(f"Label Studio is not in {LABEL_STUDIO}: run `make test-browser`.")
    return LABEL_STUDIO


@pytest.fixture(scope="session")
def stack(
    label_studio_environment: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """Start the two services for all tests of a session."""
    fetch_model()
    label_studio_port, backend_port = free_ports(2)
    settings = StackSettings(
        folder=tmp_path_factory.mktemp("demo"),
        label_studio_environment=label_studio_environment,
        label_studio_port=label_studio_port,
        backend_port=backend_port,
    )
    with running_stack(settings) as running:
        yield running


@pytest.fixture
def screenshots(request: pytest.FixtureRequest) -> Path:
    """Make an empty folder for the pictures of one test."""
    folder = ROOT / "artifacts" / "browser" / request.node.name.replace("/", "-")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def page(stack: Stack, screenshots: Path) -> Iterator[Page]:
    """Open a browser and log in; after a failure the last thing it showed is kept."""
    if shutil.which(CHROMIUM) is None:
        pytest.skip(f"There is no Chromium at {CHROMIUM}: install it or set LIDIV_CHROMIUM.")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGUMENTS)
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.set_default_timeout(60_000)
        page.goto(f"{stack.label_studio_url}/user/login")
        page.fill("input[name=email]", stack.credentials.email)
        page.fill("input[name=password]", stack.credentials.password)
        page.click("button[type=submit]")
        page.wait_for_url(f"{stack.label_studio_url}/")
        yield page
        page.screenshot(path=screenshots / "99-last.png")
        browser.close()
