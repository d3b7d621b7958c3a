"""Runs inside the rehearsed image, without a network: start what it starts, ask, and click.

Nothing but the standard library and what the image holds.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import numpy as np

from lidiv_backend.labelstudio.connect import recommended_label_config
from lidiv_backend.loadtest.bodies import PlayedClick, PlayedTask, predict_body
from lidiv_backend.loadtest.photos import photo_host

PORT = 9090


def main() -> None:
    """Print what came of it, as JSON."""
    told: dict[str, Any] = {"user": os.getuid(), "network": has_network()}
    try:
        with open("/written", "w"):
            told["read_only"] = False
    except OSError:
        told["read_only"] = True
    rows, columns = np.mgrid[0:240, 0:320]
    photo = np.zeros((240, 320, 3), dtype=np.uint8)
    photo[(rows - 120) ** 2 + (columns - 160) ** 2 < 70**2] = (230, 60, 40)
    with photo_host([photo], token="placeholder") as images:
        environment = os.environ | {
            "LIDIV_LABEL_STUDIO_URL": images.url,
            "LIDIV_LABEL_STUDIO_TOKEN": "placeholder",
        }
        server = subprocess.Popen(sys.argv[1:], env=environment)
        try:
            while (answer := ask("GET", "/ready"))[0] != 200:
                if server.poll() is not None:
                    raise SystemExit(f"The server ended with {server.returncode}.")
                time.sleep(1)
            told["ready"] = answer[1]
            told["health"] = ask("GET", "/health")
            task = PlayedTask(number=1, image="/data/upload/1/1.jpg", width=320, height=240)
            clicks = [PlayedClick(id="c1", x=50.0, y=50.0)]
            body = predict_body(task, clicks, recommended_label_config())
            status, answered = ask("POST", "/predict", body)
            told["click"] = status
            told["rle"] = len(answered["results"][0]["result"][0]["value"]["rle"])
        finally:
            server.send_signal(signal.SIGTERM)
            told["stopped"] = server.wait(60)
    print(json.dumps(told))


def has_network() -> bool:
    """Whether an address elsewhere can be reached at all."""
    try:
        socket.create_connection(("192.0.2.1", 80), timeout=3).close()
    except TimeoutError:
        return True
    except OSError:
        return False
    return True


def ask(method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Ask the server; 0 where nobody listens yet."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=120)
    try:
        headers = {"Content-Type": "application/json"}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    except OSError:
        return 0, None
    finally:
        connection.close()


if __name__ == "__main__":
    main()
