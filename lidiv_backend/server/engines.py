"""The engines of a worker process: loaded in the background, replaced without a gap."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Protocol

from lidiv_backend.errors import LidivError
from lidiv_backend.labelstudio.engine import Engine, EngineNotReadyError

_LOG = logging.getLogger(__name__)
#: Seconds between two looks at what shall be served, and after a version could not be loaded.
LOOK_SECONDS, RETRY_SECONDS = 1.0, 60.0
# So many projects are remembered to have been answered by the preset.
_NEWCOMERS = 1000


class Watched(Protocol):
    """What shall be served, as `lidiv_backend.server.promoted.PromotedModel` says it."""

    def stamp(self) -> Hashable:
        """Tell cheaply whether it is still the same."""

    def load(self) -> Engine:
        """Make the engine that shall be served now."""


class Promotable(Watched, Protocol):
    """What shall be served for a project that learns by itself."""

    def load_any(self) -> Engine:
        """As `load`, or the preset's engine where that fails."""


class EngineRegistry:
    """Holds the engine in use, and the last ones before it for interactions that began with them.

    A `lidiv_backend.labelstudio.engine.Engines`.

    Parameters
    ----------
    load
        Makes the first engine; called once, in a thread of its own.
    name
        What is served, as long as the version is not known.
    wait_seconds
        How long `current` waits for the first engine.
    keep
        How many engines are held.
    watched
        Looked at when requests come; what it says is loaded in the background and then put in use.
        None where nothing ever changes.
    clock
        Seconds that only grow; for tests.
    """

    def __init__(
        self,
        load: Callable[[], Engine],
        *,
        name: str,
        wait_seconds: float,
        keep: int = 2,
        watched: Watched | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load = load
        self._name = name
        self._wait_seconds = wait_seconds
        self._keep = keep
        self._lock = threading.Lock()
        self._engines: OrderedDict[str, Engine] = OrderedDict()
        self._settled = threading.Event()
        self._error: LidivError | None = None
        self._watched = watched
        self._clock = clock
        self._seen: Hashable = None
        self._next_look = 0.0
        self._is_replacing = False

    def start(self) -> None:
        """Begin to load, and return at once."""
        if self._watched is not None:
            # Noted before: what changes while it is being loaded is loaded next.
            self._seen = self._watched.stamp()
        threading.Thread(target=self._load_first, name="load-model", daemon=True).start()

    @property
    def versions(self) -> tuple[str, ...]:
        """Versions that are held, the one in use first."""
        with self._lock:
            return tuple(reversed(self._engines))

    @property
    def version(self) -> str:
        """Version in use; the name while there is none."""
        self._look()
        return next(iter(self.versions), self._name)

    @property
    def is_ready(self) -> bool:
        """Whether `current` returns at once."""
        return bool(self.versions)

    @property
    def error(self) -> LidivError | None:
        """Why there is no engine; None while it is still being loaded, or is there."""
        return self._error

    def current(self) -> Engine:
        """Return the engine in use, waiting for it while it is being loaded.

        Raises
        ------
        EngineNotReadyError
            If it takes too long.
        LidivError
            If it could not be loaded.
        """
        self._settled.wait(self._wait_seconds)
        self._look()
        with self._lock:
            if self._engines:
                return next(reversed(self._engines.values()))
        if self._error is not None:
            raise self._error
        raise EngineNotReadyError(
            "The model is still being loaded.", remedy="Try again in a few seconds."
        )

    def pinned(self, version: str | None) -> Engine:
        """Return the engine of a version, or the one in use where that is gone.

        Raises
        ------
        LidivError
            As `current`.
        """
        with self._lock:
            if version is not None and version in self._engines:
                return self._engines[version]
        return self.current()

    def promote(self, engine: Engine) -> None:
        """Put an engine in use; the one before stays for interactions that began with it."""
        with self._lock:
            # The same weights again: the engine that is there has its images embedded already.
            self._engines.setdefault(engine.version, engine)
            self._engines.move_to_end(engine.version)
            while len(self._engines) > self._keep:
                self._engines.popitem(last=False)
        self._settled.set()
        _LOG.info("Serving the model %s.", engine.version)

    def _look(self) -> None:
        """See whether something else shall be served, and begin to load it."""
        if self._watched is None or not self._settled.is_set():
            return
        with self._lock:
            if self._is_replacing or self._clock() < self._next_look:
                return
            self._next_look = self._clock() + LOOK_SECONDS
            stamp = self._watched.stamp()
            if stamp == self._seen:
                return
            self._is_replacing = True
        threading.Thread(
            target=self._replace, args=(self._watched, stamp), name="replace-model", daemon=True
        ).start()

    def _replace(self, watched: Watched, stamp: Hashable) -> None:
        """Load what shall be served; until then, and if that fails, all goes on as it was."""
        try:
            self.promote(watched.load())
            self._seen = stamp
        except Exception:
            _LOG.exception("The model that shall be served now cannot be loaded.")
            with self._lock:
                self._next_look = self._clock() + RETRY_SECONDS
        finally:
            self._is_replacing = False

    def _load_first(self) -> None:
        try:
            self.promote(self._load())
        except LidivError as error:
            _LOG.error("The model cannot be loaded. %s", error)
            self._error = error
        except Exception as error:
            _LOG.exception("The model cannot be loaded.")
            self._error = EngineNotReadyError(
                f"The model cannot be loaded: {type(error).__name__}.",
                remedy="The server's log says why.",
            )
        finally:
            self._settled.set()


class ProjectEngines:
    """Engines of projects that learn by themselves, as many as fit into memory.

    A project without a version of its own is answered by the preset, whose engine all of them
    share. The engines of the projects that were asked for longest ago are let go.

    Parameters
    ----------
    default
        The preset's.
    watch
        Gives what shall be served for a project; its stamp is ``()`` while nothing was promoted.
    wait_seconds
        How long a request waits while a project's engine is being loaded.
    limit
        Projects that have engines at a time.
    """

    def __init__(
        self,
        default: EngineRegistry,
        watch: Callable[[str], Promotable],
        *,
        wait_seconds: float,
        limit: int,
    ) -> None:
        self._default = default
        self._watch = watch
        self._wait_seconds = wait_seconds
        self._limit = limit
        self._lock = threading.Lock()
        self._own: OrderedDict[str, EngineRegistry] = OrderedDict()
        # Projects that this process has answered by the preset: they go on like that while their
        # first own version is being loaded.
        self._newcomers: OrderedDict[str, None] = OrderedDict()

    @property
    def held(self) -> tuple[str, ...]:
        """Projects that have engines, the one that was asked for last first."""
        with self._lock:
            return tuple(reversed(self._own))

    def of(self, project: str) -> EngineRegistry:
        """Give the engines that answer a project, and begin to load them where that is needed.

        Parameters
        ----------
        project
            As Label Studio sends it.
        """
        watched = self._watch(project)
        with self._lock:
            own = self._own.get(project)
            if own is None:
                if watched.stamp() == ():
                    self._newcomers[project] = None
                    while len(self._newcomers) > _NEWCOMERS:
                        self._newcomers.popitem(last=False)
                    return self._default
                own = EngineRegistry(
                    watched.load_any,
                    name=self._default.version,
                    wait_seconds=self._wait_seconds,
                    watched=watched,
                )
                own.start()
                self._own[project] = own
            self._own.move_to_end(project)
            while len(self._own) > self._limit:
                self._own.popitem(last=False)
            if not own.is_ready and own.error is None and project in self._newcomers:
                return self._default
            self._newcomers.pop(project, None)
        return own
