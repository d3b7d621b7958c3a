"""A disk that is full: a clear error, nothing corrupted, and all goes on when there is room."""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lidiv_backend.learning.files import ASIDE, StorageError, place_folder, write_file, write_json
from lidiv_backend.learning.process import UNWRITABLE, Job, read_outcome, thread_environment
from lidiv_backend.learning.registry import BASE, SHARED, ModelRegistry
from lidiv_backend.learning.runs import RunQueue, RunState
from lidiv_backend.learning.settings import LearningSettings
from lidiv_backend.learning.snapshot import read_snapshot, take_snapshot
from lidiv_backend.learning.store import Store, StoreError
from lidiv_backend.learning.vault import Vault
from lidiv_backend.learning.worker import StateFolders, Worker
from lidiv_backend.server.app import create_app
from lidiv_backend.server.settings import Settings
from tests.fake_engine import FakeEngine
from tests.learning.conftest import MakeWeights, make_weights  # noqa: F401 - a fixture
from tests.learning.lab import PROJECT, Lab
from tests.learning.robustness import service as lab
from tests.learning.robustness.service import SECRET
from tests.learning.test_store import ANSWER


class Disk:
    """A small file system of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self, *, but: int = 0) -> None:
        """Leave so many bytes and no more."""
        with self._ballast.open("ab", buffering=0) as file:
            with suppress(OSError):
                while True:
                    file.write(b"x" * 65536)
            size = file.tell()
            # The last bytes of a page, too.
            file.truncate(max(0, size - but))

    def clear(self) -> None:
        self._ballast.unlink()


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[Disk]:
    folder.mkdir()
    wanted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
    )
    if wanted.returncode != 0:
        pytest.skip(f"No file system can be mounted: {wanted.stderr.strip()}")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with mounted(tmp_path / "disk", "4m") as found:
        yield found


def leftovers(folder: Path) -> list[Path]:
    return list(folder.rglob(f"{ASIDE}*"))


def is_sound(path: Path) -> bool:
    with closing(sqlite3.connect(path)) as database:
        return database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_webhooks_are_refused_with_a_reason_until_there_is_room(disk: Disk) -> None:
    settings = Settings(state=disk.folder / "state", webhook_secret=SECRET)
    app = create_app(settings, engine=FakeEngine())
    headers = {"X-LiDiv-Secret": SECRET}

    def hear(number: int) -> int:
        body = lab.annotation_event(number, number)
        answer = app.test_client().post("/webhook", json=body, headers=headers)
        if answer.status_code != 201:
            assert answer.status_code == 503
            assert answer.headers["Retry-After"]
            assert "full" in answer.get_json()["remedy"]
        return answer.status_code

    assert [hear(number) for number in range(3)] == [201] * 3
    disk.fill()
    heard = {number: hear(number) for number in range(3, 20)}
    assert heard[19] == 503
    # What an annotator clicks is answered nevertheless, and probes are.
    assert app.test_client().get("/health").status_code == 200
    assert app.test_client().get("/ready").status_code == 200
    database = disk.folder / "state" / "lidiv.sqlite"
    disk.clear()
    assert hear(20) == 201
    assert is_sound(database)
    kept = Store(f"sqlite:///{database}")
    numbers = [found.annotation for found in kept.accepted_annotations([PROJECT])]
    kept.close()
    assert numbers == [0, 1, 2, *(n for n, status in heard.items() if status == 201), 20]


def test_a_database_that_has_no_room_to_be_made_says_so(disk: Disk) -> None:
    disk.fill()
    url = f"sqlite:///{disk.folder / 'state' / 'lidiv.sqlite'}"
    with pytest.raises(StoreError) as caught:
        Store(url)
    assert "full" in f"{caught.value}"
    disk.clear()
    store = Store(url)
    store.keep_answer(ANSWER)
    store.close()


def test_a_store_that_was_full_goes_on(disk: Disk) -> None:
    path = disk.folder / "lidiv.sqlite"
    store = Store(f"sqlite:///{path}")
    kept = []
    disk.fill(but=200_000)

    def keep(number: int) -> None:
        store.keep_answer(replace(ANSWER, region_id=f"r{number}"))
        kept.append(f"r{number}")

    with pytest.raises(StoreError, match="full") as caught:
        deque(map(keep, range(10_000)), maxlen=0)
    assert "full" in caught.value.remedy
    assert set(store.answers(kept[-50:])) == set(kept[-50:])
    disk.clear()
    store.keep_answer(replace(ANSWER, region_id="after"))
    assert set(store.answers([*kept[-50:], "after"])) == {*kept[-50:], "after"}
    store.close()
    assert is_sound(path)


def test_masks_and_images_are_there_whole_or_not_at_all(disk: Disk) -> None:
    vault = Vault(disk.folder / "vault")
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    mask = noise[..., 0] > 127
    before = vault.put_mask(mask)
    disk.fill(but=20_000)
    with pytest.raises(StorageError, match="space") as caught:
        vault.put_image(noise)
    assert "full" in caught.value.remedy
    assert leftovers(disk.folder) == []
    disk.clear()
    digest = vault.put_image(noise)
    np.testing.assert_array_equal(vault.image(digest), noise)
    np.testing.assert_array_equal(vault.mask(before), mask)


def test_versions_are_there_whole_or_not_at_all(
    disk: Disk, make_weights: MakeWeights  # noqa: F811 - pytest's way
) -> None:  # fmt: skip
    models = ModelRegistry(disk.folder / "state", base=make_weights(0))
    first = models.add(make_weights(1), {"n": 1})
    models.promote(SHARED, first)
    weights = make_weights(2)
    disk.fill(but=sum(file.stat().st_size for file in weights.iterdir()) // 2)
    with pytest.raises(StorageError, match="space") as caught:
        models.add(weights, {"n": 2})
    assert "full" in caught.value.remedy
    assert [entry.version for entry in models.versions()] == [first]
    disk.fill()
    with pytest.raises(StorageError):
        models.promote(SHARED, BASE)
    assert models.pointer(SHARED).version == first
    assert leftovers(disk.folder) == []
    disk.clear()
    second = models.add(weights, {"n": 2})
    assert models.promote(SHARED, second, expected=first)
    assert models.rollback(SHARED) == first


def test_a_snapshot_is_there_whole_or_not_at_all(disk: Disk, tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'lidiv.sqlite'}")
    source = Lab(store)
    for task in range(6):
        source.accept(task)
    vault = Vault(tmp_path / "vault")
    folder = disk.folder / "snapshots"

    def snapshot() -> str:
        return take_snapshot(
            store, vault, folder, source.fetch, channel=SHARED, projects=None, holdout=0.5
        ).digest

    disk.fill()
    with pytest.raises(StorageError):
        snapshot()
    assert list(folder.glob("*")) == []
    disk.clear()
    assert len(read_snapshot(folder, snapshot()).images) == 6
    store.close()


def _job(folder: Path, weights: Path, source: Lab, **changes: object) -> Job:
    vault, snapshots = folder / "vault", folder / "snapshots"
    snapshot = take_snapshot(
        source.store,
        Vault(vault),
        snapshots,
        source.fetch,
        channel=SHARED,
        projects=None,
        holdout=0.3,
    )
    values = {"steps": 2, "threads": 1, "device": "cpu", "gate_images": 1, "gate_objects": 1}
    return Job(
        in_use=str(weights),
        base=str(weights),
        vault=str(vault),
        snapshots=str(snapshots),
        snapshot=snapshot.digest,
        earlier=None,
        settings=LearningSettings(**(values | changes)),
    )


def test_a_training_without_room_says_so_and_a_later_run_comes_through(
    disk: Disk, tmp_path: Path, make_weights: MakeWeights  # noqa: F811
) -> None:  # fmt: skip
    store = Store(f"sqlite:///{tmp_path / 'lidiv.sqlite'}")
    source = Lab(store)
    for task in range(6):
        source.accept(task)
    job = _job(tmp_path, make_weights(0), source)
    folder = disk.folder / "run"
    folder.mkdir()
    job.write(folder)
    command = [sys.executable, "-m", "lidiv_backend.learning.process", str(folder)]
    environment = {**os.environ, **thread_environment(1)}

    def train() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=lab.BOUND
        )

    # Room for a note, and for no checkpoint.
    disk.fill(but=16_384)
    full = train()
    outcome = read_outcome(folder)
    if outcome is None:
        assert full.returncode == UNWRITABLE, full.stderr
        assert "full" in full.stderr
    else:
        assert "no room" in outcome.error, full.stderr
        assert full.returncode == 1
    store.close()


def test_the_worker_tells_of_a_disk_that_is_full_and_the_next_run_is_done(
    tmp_path: Path, make_weights: MakeWeights  # noqa: F811
) -> None:  # fmt: skip
    store = Store(f"sqlite:///{tmp_path / 'lidiv.sqlite'}")
    source, queue = Lab(store), RunQueue(store)
    source.accept(0)
    code = f"raise SystemExit({UNWRITABLE})"
    worker = Worker(
        store=store,
        queue=queue,
        registry=ModelRegistry(tmp_path / "state", base=make_weights(0)),
        folders=StateFolders(state=tmp_path / "state"),
        settings=LearningSettings(after=1, poll_seconds=0.01),
        fetch=source.fetch,
        spawn=lambda *_: subprocess.Popen([sys.executable, "-c", code]),
    )
    assert worker.step()
    (run,) = queue.runs()
    assert run.state is RunState.FAILED
    assert "room" in run.message
    assert "LIDIV_STATE" in run.message
    store.close()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_write_that_fails_late_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Without a small file system: some disks say only at the end that they are full."""
    write_json(tmp_path / "pointer.json", {"version": 1})
    source = tmp_path / "source"
    source.mkdir()
    (source / "weights").write_bytes(b"w" * 1000)

    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        for work in (
            lambda: write_file(tmp_path / "pointer.json", b"new"),
            lambda: place_folder(source, tmp_path / "target", extra={}),
        ):
            with pytest.raises(StorageError) as caught:
                work()
            assert os.strerror(number) in caught.value.message
            assert caught.value.remedy
    assert (tmp_path / "pointer.json").read_bytes() == b'{\n "version": 1\n}\n'
    assert not (tmp_path / "target").exists()
    assert leftovers(tmp_path) == []
