"""The command `lidiv demo`: a browser, eight photos, and a backend that answers clicks."""

from __future__ import annotations

import argparse
import signal
from pathlib import Path

from lidiv_backend.demo import label_studio
from lidiv_backend.demo.services import watch
from lidiv_backend.demo.stack import (
    Stack,
    StackSettings,
    connect_project,
    fetch_model,
    running_stack,
)
from lidiv_backend.labelstudio.connect import Connection

#: Title of the demo's project.
PROJECT = "LiDiv demo"

HOW_TO_CLICK = """\
How to click:
1. Open a photo, switch on Auto-Annotation in the bar below it, pick the label Object, take the
   Auto-Detect tool (the lowest of the tools, or the key M) and click on a thing; Alt+click on what
   does not belong to it.
2. Two settings make clicks add up: "Keep label selected after creating a region" on (in the
   settings of that bar), Auto-Accept Suggestions off.
3. A click right beside your last one (not exactly on it) shows the next reading of your clicks;
   take what you like with the tick in the bar below, then Submit.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "--port-label-studio", type=int, default=8080, help="port of Label Studio (%(default)s)"
    )
    parser.add_argument(
        "--port-backend", type=int, default=9090, help="port of the backend (%(default)s)"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(".demo"),
        help="keeps the project, its annotations, the login and the logs (%(default)s)",
    )
    parser.add_argument(
        "--label-studio-environment",
        type=Path,
        default=Path(".venv-labelstudio"),
        help="virtual environment for Label Studio, made if missing (%(default)s)",
    )
    parser.add_argument(
        "--prepare", action="store_true", help="install what is missing, and start nothing"
    )


def run(args: argparse.Namespace) -> int:
    """Run the demo until Ctrl+C."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    if not label_studio.is_installed(args.label_studio_environment):
        print(
            f"Installing Label Studio into {args.label_studio_environment}; this takes minutes.",
            flush=True,
        )
        label_studio.install(args.label_studio_environment)
    fetch_model()
    if args.prepare:
        return 0
    settings = StackSettings(
        folder=args.folder,
        label_studio_environment=args.label_studio_environment,
        label_studio_port=args.port_label_studio,
        backend_port=args.port_backend,
    )
    print(f"Starting Label Studio and the backend; logs are in {args.folder / 'logs'}.")
    try:
        with running_stack(settings) as stack:
            _describe(stack, connect_project(stack, title=PROJECT))
            watch(stack.services)
    except KeyboardInterrupt:
        print("Stopped. `lidiv demo` continues with the same project.")
    return 0


def _describe(stack: Stack, connection: Connection) -> None:
    print(
        f"""
Label Studio   {stack.label_studio_url}/projects/{connection.project_id}/data
login          {stack.credentials.email}
password       {stack.credentials.password}
backend        {stack.backend_url} (recent failures, if any)
model          {connection.model_version}

{HOW_TO_CLICK}
Ctrl+C stops both.""",
        flush=True,
    )
