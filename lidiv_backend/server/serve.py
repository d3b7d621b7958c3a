"""The command `lidiv serve`."""

from __future__ import annotations

import argparse
import os
import sys

from lidiv_backend.server.settings import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments.

    Parameters
    ----------
    parser
        Takes them.
    """
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=9090, help="port to listen on (%(default)s)")
    parser.add_argument("--preset", help="default, paper, or a folder with weights")
    parser.add_argument("--device", help="cpu, cuda, ...; chosen if not given")
    parser.add_argument("--threads", type=int, help="requests that are answered at once (24)")
    parser.add_argument(
        "--workers", type=int, help="processes, each with a model of its own in memory (1)"
    )
    parser.add_argument(
        "--no-worker",
        action="store_true",
        help="do not learn beside serving; `lidiv worker` may do it elsewhere",
    )


def run(args: argparse.Namespace) -> int:
    """Become gunicorn: this process is replaced, so that signals reach it directly.

    Parameters
    ----------
    args
        As declared above.

    Returns
    -------
    int
        Nothing is returned where the server starts.

    Raises
    ------
    LidivError
        If a setting is wrong.
    """
    host = f"[{args.host}]" if ":" in args.host else args.host
    chosen = {
        "LIDIV_BIND": f"{host}:{args.port}",
        "LIDIV_PRESET": args.preset,
        "LIDIV_DEVICE": args.device,
        "LIDIV_THREADS": args.threads,
        "LIDIV_WORKERS": args.workers,
    }
    if args.no_worker:
        chosen["LIDIV_LEARN_WORKER"] = "false"
    os.environ.setdefault("LIDIV_LEARN_WORKER", "true")
    # Or glibc keeps a heap for each of many threads, and in each as much as a large tensor takes.
    os.environ.setdefault("MALLOC_ARENA_MAX", "2")
    os.environ.update({name: str(value) for name, value in chosen.items() if value is not None})
    # A wrong setting is told here, in one line, and not by every worker.
    Settings.from_environment()
    sys.stdout.flush()
    command = [sys.executable, "-m", "gunicorn"]
    command += ["-c", "python:lidiv_backend.server.gunicorn_settings"]
    os.execv(command[0], command)  # noqa: S606 - our own interpreter
