"""The application as gunicorn serves it in tests; its engine says which process it is in."""

from __future__ import annotations

import os

from flask import Flask

from lidiv_backend.server.app import create_app
from tests.fake_engine import FakeEngine


def serve() -> Flask:
    return create_app(engine=FakeEngine(f"fake-in-{os.getpid()}"))
