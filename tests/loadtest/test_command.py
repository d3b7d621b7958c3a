from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from lidiv_backend.demo.services import Service
from lidiv_backend.loadtest import command
from lidiv_backend.loadtest.photos import PhotoHost


def test_the_backend_is_apart_from_the_installation_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, exported: frozenset[str]
) -> None:
    started: list[Service] = []
    monkeypatch.setattr(command, "RunningService", started.append)
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    images = PhotoHost(url="http://127.0.0.1:8080", token="images", sizes=((640, 480),))
    command._Site(parser.parse_args([]), tmp_path, images, "webhooks").start_replica(0)
    (service,) = started
    assert not exported & set(service.environment)
    assert "the lab's" not in service.environment.values()
    assert service.environment["LIDIV_LABEL_STUDIO_TOKEN"] == "images"
    assert service.environment["LIDIV_WEBHOOK_SECRET"] == "webhooks"
