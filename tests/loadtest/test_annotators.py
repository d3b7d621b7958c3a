"""Locust plays the annotators against the real application with a fake engine."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
import requests
from flask import Flask
from werkzeug.serving import make_server

from lidiv_backend.cli import main
from lidiv_backend.images import read_rgb
from lidiv_backend.labelstudio.connect import recommended_label_config
from lidiv_backend.loadtest import command, report
from lidiv_backend.loadtest.photos import photo_host
from lidiv_backend.loadtest.plan import VARIABLE, Plan
from lidiv_backend.server.app import backend_of, create_app
from lidiv_backend.server.settings import Settings
from tests import tiny
from tests.fake_engine import FakeEngine

ANNOTATORS = Path(command.__file__).with_name("annotators.py")
#: Not imported to find out: it would replace this process's sockets.
needs_locust = pytest.mark.skipif(
    find_spec("locust") is None, reason='pip install "lidiv-backend[loadtest]"'
)
PHOTOS = [tiny.photo(48, 64, seed=1), tiny.photo(64, 40, seed=2)]


@contextmanager
def serving(app: Flask) -> Iterator[str]:
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        backend_of(app).close()


def play(plan: Plan, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    plan.write(folder / "plan.json")
    return subprocess.run(
        [
            *(sys.executable, "-m", "locust", "--locustfile", str(ANNOTATORS), "--headless"),
            *("--only-summary", "--loglevel", "WARNING", *words),
        ],
        env=os.environ | {VARIABLE: str(folder / "plan.json")},
        capture_output=True,
        text=True,
        timeout=300,
    )


@needs_locust
def test_annotators_click_accept_and_submit_and_all_of_it_is_kept(tmp_path: Path) -> None:
    with photo_host(PHOTOS, token="t0ken") as images:
        settings = Settings(
            state=tmp_path / "state",
            label_studio_url=images.url,
            label_studio_token="t0ken",
            webhook_secret="s3cret",
        )
        with serving(create_app(settings, engine=FakeEngine())) as url:
            plan = Plan(
                url=url,
                annotators=3,
                seconds=8,
                thought_seconds=0.3,
                image_seconds=2,
                sizes=images.sizes,
                label_config=recommended_label_config(),
                webhook_secret="s3cret",
                events=str(tmp_path / "events.jsonl"),
            )
            told = play(plan, tmp_path)
    assert told.returncode == 0, told.stderr
    events = report.read_events(tmp_path / "events.jsonl", began=0)
    assert [event for event in events if not event.ok] == []
    kinds = [event.kind for event in events]
    assert kinds.count("submit") >= 3
    assert kinds.count("click") > kinds.count("first") >= 3
    kept = command._kept(tmp_path / "state", events)
    assert kept["answers"][0] == kept["answers"][1] > 10
    assert kept["annotations"] == (kinds.count("submit"),) * 2


@needs_locust
def test_servers_of_others_are_refused_whatever_locust_is_told(tmp_path: Path) -> None:
    plan = Plan(
        url="http://127.0.0.1:9",
        annotators=1,
        seconds=5,
        thought_seconds=1,
        image_seconds=5,
        sizes=((4, 4),),
        label_config="<View/>",
        webhook_secret="",
        events=str(tmp_path / "events.jsonl"),
    )
    told = play(plan, tmp_path, "--host", "http://192.0.2.1")
    assert told.returncode != 0
    assert "loopback" in told.stderr + told.stdout
    assert not (tmp_path / "events.jsonl").read_text()


def test_no_two_images_are_the_same_and_strangers_get_none() -> None:
    with photo_host(PHOTOS, token="t0ken") as images:
        assert images.sizes == ((64, 48), (40, 64))

        def get(path: str, header: str = "Token t0ken") -> requests.Response:
            headers = {"Authorization": header}
            return requests.get(f"{images.url}{path}", headers=headers, timeout=60)

        bodies = [get(f"/data/upload/1/{number}.jpg").content for number in range(12)]
        assert len(set(bodies)) == 12
        for number, body in enumerate(bodies):
            width, height = images.sizes[number % 2]
            assert read_rgb(body).shape == (height, width, 3)
        assert get("/data/upload/1/3.jpg").content == bodies[3]
        assert get("/data/upload/1/3.jpg", "Token other").status_code == 401
        assert get("/data/upload/1/../../x").status_code == 404


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(words)


def test_the_command_that_is_written_down_measures_the_same_again() -> None:
    for words, section in (
        (("--annotators", "8", "--seconds", "300", "--warm-up", "60"), "loadtest"),
        (("--ramp", "--annotators", "8", "--seconds", "280", "--device", "cpu"), "ramp"),
        (("--kill-after", "60", "--annotators", "8", "--seconds", "150", "--learn"), "replicas"),
    ):
        args = arguments(*words, "--insert", "page.md")
        typed = command.command_line(args).split()
        assert typed[:2] == ["lidiv", "loadtest"]
        again = arguments(*typed[2:])
        assert vars(again) | {"insert": None} == vars(args) | {"insert": None}
        assert command.section(args) == section


@needs_locust
def test_what_contradicts_itself_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["loadtest", "--ramp", "--kill-after", "9"]) == 1
    assert "--kill-after" in capsys.readouterr().err


@needs_locust
@pytest.mark.soak
@pytest.mark.parametrize("more", [(), ("--kill-after", "15", "--down", "5")])
def test_a_real_server_bears_a_few_annotators(tmp_path: Path, more: tuple[str, ...]) -> None:
    """Without a look at the times, which depend on the machine."""
    page = tmp_path / "page.md"
    name = "replicas" if more else "loadtest"
    page.write_text(f"<!-- measured: {name} -->\n<!-- end: {name} -->\n")
    words = ["--annotators", "3", "--seconds", "45", "--image-seconds", "15", "--thought", "2"]
    picture = ["--picture", str(tmp_path / "load.png"), "--insert", str(page)]
    assert main(["loadtest", *words, *more, *picture]) == 0
    assert "further clicks" in page.read_text()
    assert (tmp_path / "load.png").stat().st_size > 10_000
