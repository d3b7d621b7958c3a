"""Work that nobody waits for, bounded."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from lidiv_backend.observing import current_observer, observed_by
from lidiv_backend.server.logs import current_request, request_named
from lidiv_backend.turns import asking, current_asker

_LOG = logging.getLogger(__name__)


class BackgroundPool:
    """Threads for work that may be dropped; a `lidiv_backend.labelstudio.service.Background`.

    Parameters
    ----------
    workers
        How many things happen at once.
    max_waiting
        How many may be waiting or running; more are turned away.
    """

    def __init__(self, *, workers: int = 1, max_waiting: int = 64) -> None:
        self._executor = ThreadPoolExecutor(workers, thread_name_prefix="background")
        self._max_waiting = max_waiting
        self._lock = threading.Lock()
        self._taken = 0

    @property
    def length(self) -> int:
        """How many things are waiting or running."""
        with self._lock:
            return self._taken

    def submit(self, work: Callable[[], None]) -> bool:
        """Take on work, or return False if there is too much of it already."""
        with self._lock:
            if self._taken >= self._max_waiting:
                return False
            self._taken += 1
        observer, request, asker = current_observer(), current_request(), current_asker()

        def in_background() -> None:
            left_behind = None if asker is None else asker.in_background()
            with observed_by(observer), request_named(request), asking(left_behind):
                work()

        try:
            future = self._executor.submit(in_background)
        except RuntimeError:  # shut down
            self._leave()
            return False
        future.add_done_callback(self._done)
        return True

    def close(self) -> None:
        """Drop what waits, and let what runs end by itself."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _done(self, future: Future[None]) -> None:
        self._leave()
        if not future.cancelled() and (error := future.exception()) is not None:
            _LOG.error("Work in the background failed.", exc_info=error)

    def _leave(self) -> None:
        with self._lock:
            self._taken -= 1
