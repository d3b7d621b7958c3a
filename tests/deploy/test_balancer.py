"""The balancer's configuration in a real nginx, before two real gunicorns with a fake engine."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import requests
from werkzeug.serving import make_server
from werkzeug.wrappers import Request, Response

from lidiv_backend.demo.services import RunningService, Service
from lidiv_backend.loadtest.balancer import TEMPLATE, balancer, nginx_program, rendered
from tests.image_host import Answer, ImageHost, Seen, encoded, image_host, pixels
from tests.server.test_app import body, click

ROOT = Path(__file__).parents[2]
READY_SECONDS = 900.0
NAMES = ("one", "two")


class Replicas:
    """Two replicas behind nginx, which tell themselves apart by the model's version."""

    def __init__(self, folder: Path, images: ImageHost) -> None:
        self._folder = folder
        self._images = images
        self._cleanup = ExitStack()
        self._ports = {name: free_port() for name in (*NAMES, "nginx")}
        self.running: dict[str, RunningService] = {}
        self.started = 0

    def __enter__(self) -> Replicas:
        with ExitStack() as stack:
            for name in NAMES:
                self.start(name)
                stack.callback(self.stop, name)
            for name in NAMES:
                self.running[name].wait_until_ready(seconds=READY_SECONDS)
            backends = (f"127.0.0.1:{self._ports['one']}", f"127.0.0.1:{self._ports['two']}")
            service = balancer(self._folder / "nginx", port=self._ports["nginx"], backends=backends)
            # What is left out for a while is tried again sooner than in earnest.
            conf = self._folder / "nginx" / "server.conf"
            text, count = re.subn("fail_timeout=10s", "fail_timeout=1s", conf.read_text())
            assert count == 2
            conf.write_text(text)
            nginx = RunningService(service)
            stack.callback(nginx.stop)
            nginx.wait_until_ready(seconds=READY_SECONDS)
            self._cleanup = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._ports['nginx']}"

    def own_url(self, name: str) -> str:
        return f"http://127.0.0.1:{self._ports[name]}"

    def start(self, name: str) -> None:
        self.started += 1
        self.running[name] = RunningService(
            Service(
                name=name,
                command=(
                    *(sys.executable, "-m", "gunicorn", "-c", "deploy/gunicorn.conf.py"),
                    f"tests.fake_engine:serve('{name}')",
                ),
                environment=os.environ
                | {
                    "PYTHONPATH": str(ROOT),
                    "LIDIV_BIND": f"127.0.0.1:{self._ports[name]}",
                    "LIDIV_STATE": str(self._folder / "state"),
                    "LIDIV_LABEL_STUDIO_URL": self._images.url,
                    "LIDIV_LABEL_STUDIO_TOKEN": "placeholder-token",
                },
                log_path=self._folder / f"{name}-{self.started}.log",
                ready_url=f"{self.own_url(name)}/ready",
            )
        )

    def stop(self, name: str) -> None:
        self.running[name].stop()

    def kill(self, name: str) -> None:
        os.killpg(self.running[name].pid, signal.SIGKILL)
        self.running[name].stop()

    def answered_by(self, task: int, *, address: str = "/data/upload/1/photo.png") -> str:
        response = requests.post(f"{self.url}/predict", json=asked(task, address), timeout=60)
        assert response.status_code == 200, response.text
        (result,) = response.json()["results"]
        assert result["result"]
        return str(result["model_version"])


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def asked(task: int, address: str) -> dict[str, Any]:
    content = body(click(50, id=f"c{task}"))
    content["tasks"][0] |= {"id": task, "data": {"image": address}}
    # In the order in which Label Studio sends it.
    assert next(iter(content)) == "tasks"
    assert next(iter(content["tasks"][0])) == "id"
    return content


@pytest.fixture(scope="module")
def images() -> Iterator[ImageHost]:
    with image_host() as host:
        host.routes["/data/upload/1/photo.png"] = Answer(body=encoded(pixels(512, 512)))
        yield host


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory, images: ImageHost) -> Iterator[Replicas]:
    if nginx_program() is None:
        pytest.skip("nginx is not installed: apt-get install nginx-light")
    with Replicas(tmp_path_factory.mktemp("replicas"), images) as running:
        yield running


@pytest.fixture
def held(images: ImageHost) -> Iterator[tuple[threading.Event, threading.Event]]:
    """An image that is held back from whoever asks first: when it was asked for, and let it go."""
    asked_for, let_go = threading.Event(), threading.Event()

    def answer(_: Seen) -> Answer:
        if asked_for.is_set():
            return Answer(body=encoded(pixels(512, 512)))
        asked_for.set()
        assert let_go.wait(60)
        return Answer(body=encoded(pixels(512, 512)))

    images.routes["/data/upload/1/held.png"] = answer
    yield asked_for, let_go
    let_go.set()


def in_background(
    pool: ThreadPoolExecutor, replicas: Replicas, task: int, asked_for: threading.Event
) -> Future[str]:
    future = pool.submit(replicas.answered_by, task, address="/data/upload/1/held.png")
    assert asked_for.wait(60)
    return future


def test_all_clicks_on_an_image_go_to_one_replica_and_the_images_to_both(
    replicas: Replicas,
) -> None:
    first = {task: replicas.answered_by(task) for task in range(100, 140)}
    again = {task: replicas.answered_by(task) for task in reversed(first)}
    assert first == again
    counts = [list(first.values()).count(name) for name in NAMES]
    assert min(counts) >= 8


def test_spaces_in_the_body_lead_to_the_same_replica(replicas: Replicas) -> None:
    import json

    for task in range(100, 110):
        content = asked(task, "/data/upload/1/photo.png")
        seen = set()
        for layout in ({"indent": 2}, {"separators": (",", ":")}, {}):
            sent = json.dumps(content, **layout)  # type: ignore[arg-type]
            headers = {"Content-Type": "application/json"}
            answer = requests.post(
                f"{replicas.url}/predict", data=sent, headers=headers, timeout=60
            )
            seen.add(answer.json()["results"][0]["model_version"])
        assert len(seen) == 1


def test_a_body_that_does_not_fit_into_memory_is_answered_too(replicas: Replicas) -> None:
    content = asked(100, "/data/upload/1/photo.png")
    content["tasks"][0]["annotations"] = [{"result": [], "padding": "x" * 5_000_000}]
    response = requests.post(f"{replicas.url}/predict", json=content, timeout=60)
    assert response.status_code == 200
    refused = requests.post(
        f"{replicas.url}/predict", headers={"Content-Length": "200000000"}, timeout=60
    )
    assert refused.status_code == 413


@pytest.mark.parametrize(
    "path", ["/metrics", "/metrics?a=b", "//metrics", "/%6detrics", "/x/../metrics", "/metrics/"]
)
def test_numbers_are_not_given_to_whoever_comes_through_the_balancer(
    replicas: Replicas, path: str
) -> None:
    # Not by requests, which would tidy up the path.
    port = int(replicas.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    assert answer.split(b"\r\n")[0].split()[1] == b"404"
    assert b"lidiv_" not in answer
    assert b"# HELP" not in answer


def test_probes_of_the_balancer_need_no_replica(replicas: Replicas) -> None:
    assert requests.get(f"{replicas.url}/balancer", timeout=60).status_code == 204
    assert "nginx/" not in requests.get(f"{replicas.url}/balancer", timeout=60).headers["Server"]


def test_an_nginx_that_follows_names_is_told_to() -> None:
    new = rendered(TEMPLATE.read_text(), port=1, backends=("a:1", "b:2"), version=(1, 29, 0))
    old = rendered(TEMPLATE.read_text(), port=1, backends=("a:1", "b:2"), version=(1, 22, 1))
    assert "server a:1 max_fails=2 fail_timeout=10s resolve;" in new
    assert "server b:2 max_fails=2 fail_timeout=10s;" in old
    assert "${" not in re.sub(r"#.*", "", new + old)


@pytest.mark.parametrize(
    ("proxies", "sent", "passed_on"),
    [
        # Nobody stands before nginx: what a client says is its own invention.
        (1, "https", "http"),
        (1, None, "http"),
        (2, "https", "https"),
        (2, None, None),
    ],
)
def test_the_scheme_is_what_the_outermost_proxy_says(
    tmp_path: Path, proxies: int, sent: str | None, passed_on: str | None
) -> None:
    if nginx_program() is None:
        pytest.skip("nginx is not installed: apt-get install nginx-light")
    told: list[str | None] = []

    @Request.application
    def replica(request: Request) -> Response:
        told.append(request.headers.get("X-Forwarded-Proto"))
        return Response()

    server = make_server("127.0.0.1", 0, replica, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    address, port = f"127.0.0.1:{server.server_port}", free_port()
    nginx = RunningService(
        balancer(tmp_path / "nginx", port=port, backends=(address, address), proxies=proxies)
    )
    try:
        nginx.wait_until_ready(seconds=READY_SECONDS)
        told.clear()
        headers = {} if sent is None else {"X-Forwarded-Proto": sent}
        assert requests.get(f"http://127.0.0.1:{port}/", headers=headers, timeout=60).ok
    finally:
        nginx.stop()
        server.shutdown()
        thread.join()
    assert told == [passed_on]


def test_a_killed_replica_costs_nothing_and_gets_its_images_back(
    replicas: Replicas, held: tuple[threading.Event, threading.Event]
) -> None:
    before = {task: replicas.answered_by(task) for task in range(100, 120)}
    mine = next(task for task, name in before.items() if name == "two")
    with ThreadPoolExecutor(1) as pool:
        click_on_it = in_background(pool, replicas, mine, held[0])
        replicas.kill("two")
        # What it was answering is answered by the other, and whatever comes then.
        assert click_on_it.result(60) == "one"
    assert {replicas.answered_by(task) for task in before} == {"one"}
    event = {"action": "PROJECT_UPDATED", "project": {"id": 1}}
    assert requests.post(f"{replicas.url}/webhook", json=event, timeout=60).status_code == 201
    replicas.start("two")
    replicas.running["two"].wait_until_ready(seconds=READY_SECONDS)
    while replicas.answered_by(mine) != "two":
        pass
    assert {task: replicas.answered_by(task) for task in before} == before


def test_a_replica_that_is_asked_to_stop_answers_what_it_began(
    replicas: Replicas, held: tuple[threading.Event, threading.Event]
) -> None:
    asked_for, let_go = held
    task = next(task for task in range(300, 400) if replicas.answered_by(task) == "two")
    two = replicas.running["two"]
    with ThreadPoolExecutor(1) as pool:
        click_on_it = in_background(pool, replicas, task, asked_for)
        # As an orchestrator does it: one signal, to the process that was started.
        os.kill(two.pid, signal.SIGTERM)
        while "Handling signal: term" not in two.service.log_path.read_text():
            pass
        let_go.set()
        assert click_on_it.result(60) == "two"
    # Whoever comes meanwhile is answered by either, and then by the other.
    while not two.has_ended():
        replicas.answered_by(task)
    assert str(two.ended()).startswith("two ended with exit status 0.")
    assert replicas.answered_by(task) == "one"
