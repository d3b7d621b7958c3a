"""The same engine for people who run the `label-studio-ml` package.

A ``model.py`` for it is the one line
``from lidiv_backend.labelstudio.ml_backend import LiDivBackend``.
Settings come from the environment as for `lidiv serve`, see `lidiv_backend.server.settings`. The
package makes a new object for every request or every setup, so the model and the database are
shared by all objects of a process.

Importable only where `label_studio_ml` is installed: 1.0.9 from PyPI, or the 2.x line.
"""

from __future__ import annotations

import functools
import secrets
from typing import Any

from label_studio_ml.model import LabelStudioMLBase
from pydantic import SecretStr

from lidiv_backend.labelstudio.images import Connection
from lidiv_backend.labelstudio.requests import PredictRequest, parse
from lidiv_backend.server.backend import Backend, build_backend
from lidiv_backend.server.settings import Settings


@functools.cache
def shared_backend() -> Backend:
    """Return the parts that all objects of this process share, made at the first call."""
    return build_backend(Settings.from_environment())


class LiDivBackend(LabelStudioMLBase):  # type: ignore[misc]
    """Masks from clicks, with alternatives."""

    def setup(self) -> None:
        """Tell the 2.x line which model answers."""
        self.set("model_version", shared_backend().engines.version)

    def predict(
        self, tasks: list[dict[str, Any]], context: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[Any]:
        """Answer clicks, or a batch of tasks.

        Parameters
        ----------
        tasks
            As Label Studio sends them.
        context
            What an annotator clicked; None in a batch.
        **kwargs
            Ignored.

        Returns
        -------
        list
            For each task a prediction, or a list of them, worst first.

        Raises
        ------
        LidivError
            If it cannot be answered; kept among the recent failures too.
        """
        backend = shared_backend()
        request_id = secrets.token_hex(6)
        try:
            received = parse(
                PredictRequest,
                {
                    "tasks": tasks,
                    "project": getattr(self, "project_id", None),
                    "label_config": self.label_config,
                    "params": {"context": context},
                },
            )
            return backend.predict(received, request_id=request_id, connection=self._connection())
        except Exception as error:
            backend.keep_failure(error, request_id=request_id, route="LiDivBackend.predict")
            raise

    def fit(self, *args: Any, event: str = "", data: Any = None, **kwargs: Any) -> dict[str, Any]:
        """Write down what happened in Label Studio; a worker process learns from it, not this one.

        Parameters
        ----------
        *args
            The 2.x line passes the event and its data by position, 1.0.9 a tuple of nothing.
        event
            Name of the event.
        data
            The webhook's body without the name.
        **kwargs
            Ignored.

        Returns
        -------
        dict
            Nothing that would have to be loaded later.
        """
        if len(args) == 2:
            event, data = args
        if event:
            shared_backend().keep_event({"action": event, **(data or {})})
        return {}

    def _connection(self) -> Connection | None:
        """Return what 1.0.9 was told by ``/setup``, unless the settings say it."""
        hostname = getattr(self, "hostname", "")
        if not hostname or shared_backend().settings.label_studio_url:
            return None
        return Connection(url=hostname, token=SecretStr(getattr(self, "access_token", "")))
