from __future__ import annotations

from pathlib import Path

import pytest

from lidiv_backend.demo import stack
from lidiv_backend.demo.credentials import load_or_create


def test_the_backend_is_apart_from_the_installation_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, exported: frozenset[str]
) -> None:
    monkeypatch.setenv("LIDIV_WEBHOOK_SECRET", "the lab's")
    monkeypatch.setenv("LIDIV_PRESET", "paper")
    credentials = load_or_create(tmp_path)
    environment = stack._backend_service(
        folder=tmp_path,
        port=9090,
        label_studio_url="http://localhost:8080",
        credentials=credentials,
        further={"LIDIV_LEARN_AFTER": "5"},
    ).environment
    assert not exported & set(environment)
    assert "the lab's" not in environment.values()
    assert environment["LIDIV_WEBHOOK_SECRET"] == credentials.webhook_secret
    # What is no secret and no database is handed on.
    assert environment["LIDIV_PRESET"] == "paper"
    assert environment["LIDIV_LEARN_AFTER"] == "5"
