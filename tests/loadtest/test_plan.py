from __future__ import annotations

import dataclasses
import stat
from pathlib import Path

import pytest

from lidiv_backend.errors import BadRequestError
from lidiv_backend.loadtest.plan import MAX_ANNOTATORS, MAX_SECONDS, Plan, require_loopback

PLAN = Plan(
    url="http://127.0.0.1:9090",
    annotators=8,
    seconds=300,
    thought_seconds=4,
    image_seconds=60,
    sizes=((640, 480), (300, 400)),
    label_config="<View/>",
    webhook_secret="placeholder",
    events="events.jsonl",
)


@pytest.mark.parametrize(
    "url",
    [
        "http://192.168.1.7:9090",
        "http://example.org",
        "http://localhost.example.org",
        "http://127.0.0.1.example.org",
        "http://127.0.0.1@example.org/",
        "http://[2001:db8::1]:9090",
        "http://0.0.0.0:9090",
        "",
    ],
)
def test_servers_of_others_are_refused(url: str) -> None:
    with pytest.raises(BadRequestError, match="loopback"):
        require_loopback(url)
    with pytest.raises(BadRequestError, match="loopback"):
        dataclasses.replace(PLAN, url=url)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1", "http://localhost:1", "http://127.8.9.1", "http://[::1]:9"]
)
def test_this_machine_is_not(url: str) -> None:
    require_loopback(url)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("annotators", 0),
        ("annotators", MAX_ANNOTATORS + 1),
        ("seconds", -1),
        ("seconds", MAX_SECONDS + 1),
        ("seconds", float("nan")),
    ],
)
def test_there_is_a_most_of_everything(name: str, value: float) -> None:
    with pytest.raises(BadRequestError):
        dataclasses.replace(PLAN, **{name: value})  # type: ignore[arg-type]


def test_what_is_written_is_read_and_hidden_from_others(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    PLAN.write(path)
    assert Plan.read(path) == PLAN
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
