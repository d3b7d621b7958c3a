"""Work of a GPU that is recorded once and then set going by a single order.

A click of `default` is some hundreds of programs that run for a few microseconds each. To order
them one by one takes the processor several times as long as they take the GPU.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_logger = logging.getLogger(__name__)

#: Recordings that are kept; the one that was not used for the longest time goes first.
MOST = 256
#: A recording takes as long as doing the work a few times, and everybody waits: it is made when the
#: work is asked for so many times. Windows of rare shapes are not worth it.
OFTEN = 4
#: So many kinds of work are counted.
_COUNTED = 4096
#: Rows of clicks are padded to one of few lengths, or each length would have its own recording.
_ROOM = 4

Work = Callable[..., tuple[Tensor, ...]]
#: What sets work going again, and the tensors that it writes to.
Recorded = tuple[Callable[[], None], tuple[Tensor, ...]]
#: Records some work on given tensors, which it reads from again each time.
Record = Callable[[Work, Sequence[Tensor]], Recorded]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Recording:
    given: tuple[Tensor, ...]
    replay: Callable[[], None]
    found: tuple[Tensor, ...]


class Replays:
    """Does work on tensors, by a recording where the same was asked for before.

    Any number of threads can use it together, all of them on the same stream.

    Parameters
    ----------
    record
        How work is recorded; None for a device that gains nothing by it: all is then just done.
    most
        Number of recordings that are kept.
    often
        Work is recorded when it is asked for so many times.
    """

    def __init__(self, record: Record | None, *, most: int = MOST, often: int = OFTEN) -> None:
        self._record = record
        self._most = most
        self._often = often
        self._lock = threading.Lock()
        #: None for what cannot be recorded.
        self._recordings: OrderedDict[Hashable, _Recording | None] = OrderedDict()
        #: How often what has no recording was asked for.
        self._asked: OrderedDict[Hashable, int] = OrderedDict()

    @classmethod
    def on(cls, device: torch.device) -> Replays:
        """Those of a device."""
        return cls(GraphRecorder(device) if device.type == "cuda" else None)

    def room(self, count: int) -> int:
        """To how many clicks ``count`` of them are best padded."""
        if self._record is None:
            return count
        room = _ROOM
        while room < count:
            room *= 2
        return room

    def __call__(self, key: Hashable, work: Work, *given: Tensor) -> tuple[Tensor, ...]:
        """Do some work.

        Parameters
        ----------
        key
            Says what is done; the same key and shapes mean the same work on other numbers.
        work
            From tensors to tensors; it must not look at their numbers on the processor's side.
        given
            What it is done on, on the device.

        Returns
        -------
        tuple of Tensor
            What came out, the caller's own.
        """
        if self._record is None:
            return work(*given)
        key = key, tuple((tensor.shape, tensor.stride(), tensor.dtype) for tensor in given)
        with self._lock:
            recording = self._find(key, work, given)
            if recording is not None:
                for own, tensor in zip(recording.given, given, strict=True):
                    own.copy_(tensor)
                recording.replay()
                # Copies: the next replay writes to the same tensors.
                return tuple(tensor.clone() for tensor in recording.found)
        return work(*given)

    def _find(self, key: Hashable, work: Work, given: Sequence[Tensor]) -> _Recording | None:
        """The recording of a key, made when it was asked for often enough."""
        if key in self._recordings:
            self._recordings.move_to_end(key)
            return self._recordings[key]
        self._asked[key] = self._asked.pop(key, 0) + 1
        if self._asked[key] < self._often:
            if len(self._asked) > _COUNTED:
                self._asked.popitem(last=False)
            return None
        del self._asked[key]
        assert self._record is not None  # noqa: S101
        own = tuple(torch.empty_like(tensor).copy_(tensor) for tensor in given)
        recording: _Recording | None = None
        try:
            replay, found = self._record(work, own)
            recording = _Recording(given=own, replay=replay, found=found)
        except RuntimeError:
            _logger.warning(
                "Work of the GPU cannot be recorded; it is done step by step.", exc_info=True
            )
        self._recordings[key] = recording
        if len(self._recordings) > self._most:
            self._recordings.popitem(last=False)
        return recording


class GraphRecorder:
    """Records with CUDA graphs, all of which share memory: one is replayed at a time.

    Parameters
    ----------
    device
        A GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None

    def __call__(self, work: Work, given: Sequence[Tensor]) -> Recorded:
        """Record some work; see `Record`."""
        with torch.cuda.device(self._device):
            if self._stream is None:
                self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
                self._pool = torch.cuda.graph_pool_handle()
            current = torch.cuda.current_stream(self._device)
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                # Libraries set themselves up when they are first used on a stream.
                work(*given)
            current.wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            # Other threads may go on meanwhile.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                found = work(*given)
        return graph.replay, found
