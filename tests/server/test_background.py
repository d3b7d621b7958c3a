from __future__ import annotations

import threading

import pytest

from lidiv_backend.server.background import BackgroundPool


def test_too_much_work_is_turned_away_and_places_come_free() -> None:
    pool = BackgroundPool(workers=1, max_waiting=2)
    started, release, done = threading.Event(), threading.Event(), threading.Event()

    def hold() -> None:
        started.set()
        assert release.wait(30)

    assert pool.submit(hold)
    assert started.wait(30)
    assert pool.submit(done.set)
    assert not pool.submit(done.set)
    release.set()
    assert done.wait(30)
    # The place of what is done may come free a moment after it is done.
    freed = threading.Event()
    while not pool.submit(freed.set):
        pass
    assert freed.wait(30)
    pool.close()


def test_a_failure_is_logged_and_the_pool_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    pool = BackgroundPool(workers=1)
    done = threading.Event()
    pool.submit(lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    pool.submit(done.set)
    assert done.wait(30)
    pool.close()
    assert "ZeroDivisionError" in caplog.text


def test_closing_drops_what_waits() -> None:
    pool = BackgroundPool(workers=1)
    started, release, never = threading.Event(), threading.Event(), threading.Event()

    def hold() -> None:
        started.set()
        assert release.wait(30)

    pool.submit(hold)
    assert started.wait(30)
    pool.submit(never.set)
    pool.close()
    release.set()
    assert not pool.submit(never.set)
    assert not never.is_set()
