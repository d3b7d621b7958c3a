"""Free memory goes back to the system."""

from __future__ import annotations

import ctypes
import sys
import threading

import numpy as np
import psutil
import pytest

from lidiv_backend.server import memory
from lidiv_backend.server.memory import MemoryKeeper, give_back

glibc = pytest.mark.skipif(sys.platform != "linux", reason="the C library is another one")


@glibc
def test_what_is_free_between_what_is_kept_goes_back() -> None:
    process = psutil.Process()
    # Too small to be pieces of their own, which would go back by themselves.
    pieces = [np.ones(64 * 1024, np.uint8) for _ in range(2000)]
    kept = pieces[::100]
    before = process.memory_info().rss
    del pieces
    assert give_back()
    assert process.memory_info().rss < before - 80 * 2**20
    assert all(piece.all() for piece in kept)


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert not give_back()
    before = threading.active_count()
    MemoryKeeper(period=0.0).start()
    assert threading.active_count() == before


@glibc
def test_it_happens_again_and_again_until_it_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    times, twice = [], threading.Event()

    def counted() -> bool:
        times.append(threading.current_thread())
        if len(times) >= 2:
            twice.set()
        return True

    monkeypatch.setattr(memory, "give_back", counted)
    keeper = MemoryKeeper(period=0.001)
    keeper.start()
    assert twice.wait(60)
    keeper.stop()
    times[0].join(60)
    assert not times[0].is_alive()
