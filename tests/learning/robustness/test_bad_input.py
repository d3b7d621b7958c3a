"""What the world sends, against the real application and the real store."""

from __future__ import annotations

import json
import socket
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from flask import Flask

from lidiv_backend.labelstudio.rle import encode_mask
from lidiv_backend.learning.runs import RunQueue
from lidiv_backend.learning.snapshot import Snapshot, take_snapshot
from lidiv_backend.learning.store import Store
from lidiv_backend.learning.vault import Vault
from lidiv_backend.server.app import backend_of
from lidiv_backend.server.connections import find_connection, image_source
from lidiv_backend.server.settings import Settings
from tests.labelstudio import golden
from tests.learning.lab import PROJECT, region
from tests.learning.robustness import service as lab
from tests.learning.robustness.service import SECRET, LabelStudio
from tests.server.test_serve import running

HEADERS = {"X-LiDiv-Secret": SECRET}


@pytest.fixture
def store(app: Flask) -> Store:
    return backend_of(app).store


def hear(app: Flask, body: dict[str, Any], status: int = 201) -> None:
    answer = app.test_client().post("/webhook", json=body, headers=HEADERS)
    assert answer.status_code == status, answer.get_data(as_text=True)


def frozen(app: Flask, settings: Settings, folder: Path) -> Snapshot:
    """Take a snapshot as the worker does, images through Label Studio."""
    store, images = backend_of(app).store, image_source(settings)
    return take_snapshot(
        store,
        Vault(folder / "vault"),
        folder / "snapshots",
        lambda project, task, address: images.rgb(
            address, find_connection(settings, store, project), task=task
        ),
        channel="shared",
        projects=None,
        holdout=0.5,
    )


def annotations_of(snapshot: Snapshot) -> list[int]:
    return sorted(int(mask.name.split("/")[1]) for image in snapshot.images for mask in image.masks)


def test_an_image_that_is_gone_costs_only_its_own_annotations(
    app: Flask, settings: Settings, studio: LabelStudio, tmp_path: Path
) -> None:
    for task in range(4):
        hear(app, lab.annotation_event(task, task))
    studio.gone = {1, 3}
    snapshot = frozen(app, settings, tmp_path)
    assert annotations_of(snapshot) == [0, 2]
    assert [problem.split(",")[0] for problem in snapshot.problems] == [
        f"Annotation {number} of project {PROJECT}" for number in (1, 3)
    ]
    # When it is there again, so are they.
    studio.gone = set()
    assert annotations_of(frozen(app, settings, tmp_path)) == [0, 1, 2, 3]


def test_regions_that_are_no_masks_of_their_image_are_left_out(
    app: Flask, settings: Settings, tmp_path: Path
) -> None:
    height, width = lab.IMAGES.height, lab.IMAGES.width
    whole = np.ones((height, width), dtype=bool)
    (brush, label) = region(whole, identity="good")
    box = {"x": 10, "y": 10, "width": 20, "height": 20, "rectanglelabels": ["Cell"]}
    odd: list[Any] = [
        region(np.ones((height + 1, width), dtype=bool)),  # a mask of another size
        region(np.zeros((height, width), dtype=bool)),  # an empty one
        [{**brush, "type": "rectanglelabels", "value": box}],
        [{**brush, "type": "polygonlabels", "value": {"points": [[1, 1], [5, 1], [5, 5]]}}],
        [{"type": "choices", "value": {"choices": ["good"]}, "from_name": "c", "to_name": "image"}],
        [{**brush, "value": {"format": "rle", "rle": [1, 2, 3]}}],
        [{**brush, "value": {"format": "rle", "rle": "no list"}}],
        [{**brush, "value": None}],
        [{**brush, "original_width": -3}],
        [{**brush, "to_name": "another image"}, {**label, "id": 5}],
        ["no object", None, 7],
        [],
    ]
    for number, result in enumerate(odd):
        hear(app, lab.annotation_event(number, number, result=result))
    hear(app, lab.annotation_event(99, 0, result=[*odd[2], brush, label, brush]))
    snapshot = frozen(app, settings, tmp_path)
    # Where there is one image only, another name of it is read as that one.
    assert annotations_of(snapshot) in ([99], [9, 99])
    told = {int(problem.split()[1]) for problem in snapshot.problems}
    assert {0, 1, 2, 3, 5, 6, 7, 8} <= told
    assert all(PROJECT in problem for problem in snapshot.problems)


@pytest.mark.parametrize("name", sorted(p.stem for p in golden.FOLDER.glob("saved_result_*.json")))
def test_odd_results_that_label_studio_saved_are_kept_and_read_as_far_as_possible(
    app: Flask, store: Store, settings: Settings, tmp_path: Path, name: str
) -> None:
    result = golden.load(name)
    hear(app, lab.annotation_event(5, 0, result=result))
    hear(app, lab.annotation_event(6, 1))
    kept = store.annotation(PROJECT, 5)
    assert kept is not None
    assert list(kept.result) == result
    # Its image is another one here, so all that is asked is that the other one is learnt from.
    assert annotations_of(frozen(app, settings, tmp_path)) == [6]


def test_the_same_webhook_twice_is_one_annotation(app: Flask, store: Store) -> None:
    for _ in range(2):
        hear(app, lab.annotation_event(5, 0))
    assert store.count_accepted(PROJECT, since=None) == 1
    assert len(list(store.accepted_annotations(None))) == 1


def test_updates_deletions_and_skips_take_effect(
    app: Flask, store: Store, settings: Settings, tmp_path: Path
) -> None:
    for number in range(4):
        hear(app, lab.annotation_event(number, number))
    smaller = np.zeros((lab.IMAGES.height, lab.IMAGES.width), dtype=bool)
    smaller[5:20, 5:20] = True
    update = {"action": "ANNOTATION_UPDATED", "result": region(smaller)}
    hear(app, lab.annotation_event(0, 0, **update))
    hear(app, lab.event("ANNOTATIONS_DELETED", annotations=[{"id": 1}, {"id": 77}]))
    hear(app, lab.annotation_event(2, 2, action="ANNOTATION_UPDATED", was_cancelled=True))
    hear(app, lab.annotation_event(4, 4, was_cancelled=True))
    # What was deleted does not come back with a webhook that was late.
    hear(app, lab.annotation_event(1, 1, action="ANNOTATION_UPDATED"))
    snapshot = frozen(app, settings, tmp_path)
    assert annotations_of(snapshot) == [0, 3]
    (mask,) = [
        mask for image in snapshot.images for mask in image.masks if mask.name.split("/")[1] == "0"
    ]
    np.testing.assert_array_equal(Vault(tmp_path / "vault").mask(mask.mask), smaller)
    assert store.count_accepted(None, since=None) == 2


@pytest.mark.parametrize("secret", [None, "", "wrong", SECRET + " ", SECRET.upper(), "\xe9"])
def test_without_the_secret_nothing_is_stored(app: Flask, store: Store, secret: str | None) -> None:
    headers = {} if secret is None else {"X-LiDiv-Secret": secret}
    for body in (
        lab.annotation_event(5, 0),
        lab.event("ANNOTATIONS_DELETED", annotations=[{"id": 5}]),
        {"action": "nonsense"},
    ):
        refused = app.test_client().post("/webhook", json=body, headers=headers)
        assert refused.status_code == 401
        assert SECRET not in refused.get_data(as_text=True)
    assert store.events() == []
    assert list(store.accepted_annotations(None)) == []
    assert RunQueue(store).runs() == []


@pytest.mark.parametrize("kind", ["numbers", "nul", "deep", "types"])
def test_nonsense_is_refused_and_breaks_nothing(app: Flask, store: Store, kind: str) -> None:
    body = lab.annotation_event(5, 0)
    if kind == "numbers":
        body["annotation"]["id"] = 2**70
    elif kind == "nul":
        body["action"] = "ANNOTATION\0CREATED"
    elif kind == "deep":
        body["annotation"]["result"] = json.loads("[" * 500 + "]" * 500)
    else:
        body["annotation"] = ["a", {"b": 1}]
    answer = app.test_client().post("/webhook", json=body, headers=HEADERS)
    assert answer.status_code in (201, 400)
    hear(app, lab.annotation_event(6, 0))
    assert store.annotation(PROJECT, 6) is not None


@pytest.mark.soak
def test_a_thousand_webhooks_at_once_are_all_kept(tmp_path: Path, studio: LabelStudio) -> None:
    many = 1000
    environment = {
        "LIDIV_LABEL_STUDIO_URL": studio.url,
        "LIDIV_LABEL_STUDIO_TOKEN": "placeholder",
        "LIDIV_WEBHOOK_SECRET": SECRET,
    }
    arguments = ("-c", "deploy/gunicorn.conf.py", "tests.fake_engine:serve()")
    mask = {"format": "rle", "rle": encode_mask(lab.IMAGES[0].objects[0].mask)}
    with running(tmp_path, *arguments, **environment) as url:
        port = int(url.rpartition(":")[2])
        assert requests.get(f"{url}/ready", timeout=lab.BOUND).status_code == 200
        sockets = []
        for number in range(many):
            body = lab.annotation_event(
                number, number % 7, result=[{"id": f"r{number}", "type": "brush", "value": mask}]
            )
            sockets.append(socket.create_connection(("127.0.0.1", port), timeout=lab.BOUND))
            sockets[-1].sendall(_request(json.dumps(body).encode()))
        # All have been sent before the first answer is read.
        statuses = Counter(_status(each) for each in sockets)
        assert statuses == {201: many}
    kept = Store(f"sqlite:///{tmp_path / 'state' / 'lidiv.sqlite'}")
    numbers = [annotation.annotation for annotation in kept.accepted_annotations([PROJECT])]
    kept.close()
    assert sorted(numbers) == list(range(many))


def _request(body: bytes) -> bytes:
    return (
        b"POST /webhook HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Connection: close\r\nX-LiDiv-Secret: " + SECRET.encode() + b"\r\n"
        b"Content-Length: " + str(len(body)).encode() + b"\r\n\r\n" + body
    )


def _status(connection: socket.socket) -> int:
    with connection:
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return int(answer.split()[1])
