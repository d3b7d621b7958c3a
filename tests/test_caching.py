"""BoundedCache: bounded, computed once, never poisoned by an error."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from lidiv_backend.caching import BoundedCache


def _size(value: bytes) -> int:
    return len(value)


def test_the_least_recently_used_goes_first() -> None:
    cache: BoundedCache[str, bytes] = BoundedCache(max_bytes=10)
    for key in "abc":
        cache.get_or_compute(key, lambda: b"1234", size_of=_size)
        if key == "b":
            assert cache.get("a") is not None  # used again, so that b is older
    assert cache.get("b") is None
    assert cache.get("a") == cache.get("c") == b"1234"
    assert cache.size == 8


def test_a_value_larger_than_everything_is_returned_and_not_kept() -> None:
    cache: BoundedCache[str, bytes] = BoundedCache(max_bytes=3)
    assert cache.get_or_compute("a", lambda: b"1234", size_of=_size) == b"1234"
    assert len(cache) == 0
    assert cache.size == 0


def test_old_values_are_computed_anew() -> None:
    now = [0.0]
    cache: BoundedCache[str, bytes] = BoundedCache(max_bytes=9, max_age=5, clock=lambda: now[0])
    assert cache.get_or_compute("a", lambda: b"old", size_of=_size) == b"old"
    now[0] = 5.0
    assert cache.get_or_compute("a", lambda: b"new", size_of=_size) == b"old"
    now[0] = 5.1
    assert cache.get_or_compute("a", lambda: b"new", size_of=_size) == b"new"
    assert cache.size == 3


def test_threads_that_ask_together_compute_once() -> None:
    cache: BoundedCache[str, bytes] = BoundedCache(max_bytes=100)
    started, release, calls = threading.Event(), threading.Event(), []

    def compute() -> bytes:
        calls.append(1)
        started.set()
        assert release.wait(10)
        return b"value"

    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(cache.get_or_compute, "a", compute, size_of=_size)
        assert started.wait(10)
        others = [pool.submit(cache.get_or_compute, "a", compute, size_of=_size) for _ in range(3)]
        # Another key is not held up by the one that is being computed.
        assert cache.get_or_compute("b", lambda: b"b", size_of=_size) == b"b"
        release.set()
        assert {future.result(10) for future in (first, *others)} == {b"value"}
    assert len(calls) == 1


def test_an_error_is_not_kept() -> None:
    cache: BoundedCache[str, bytes] = BoundedCache(max_bytes=100)

    def fail() -> bytes:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        cache.get_or_compute("a", fail, size_of=_size)
    assert cache.get_or_compute("a", lambda: b"back", size_of=_size) == b"back"


def test_a_value_can_be_replaced() -> None:
    cache: BoundedCache[str, str] = BoundedCache(max_bytes=10)
    cache.put("a", "first", size=4)
    cache.put("a", "second", size=6)
    assert (cache.get("a"), cache.size) == ("second", 6)
