"""The log: lines for people or JSON for machines, with the request's name, and without secrets.

Code logs by Python's own `logging`. What must not be seen is left out where a line is written, so
that it does not matter who wrote it: this server's secrets, tokens and logins of any kind, what
stands behind the ``?`` of an address, and the content of images.
"""

from __future__ import annotations

import base64
import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

from gunicorn.glogging import Logger
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from lidiv_backend.server.settings import SECRETS, Settings

#: Asked for by whoever looks after the server, every few seconds, however much others ask.
PROBES = ("/health", "/ready", "/metrics")
_HIDDEN = "***"
#: Characters of a message, and of a traceback, that are kept.
MAX_MESSAGE, MAX_TRACEBACK = 4_000, 20_000
# Shorter ones would blank out half of the log, and are no secrets.
_SHORTEST_SECRET = 6
_PATTERNS = (
    # Content of images and other files within an address.
    (re.compile(r"\bdata:[\w.+-]*/?[\w.+-]*[;,][^\s\"'<>)]*"), f"data:{_HIDDEN}"),
    # Logins and signatures within an address.
    (re.compile(r"(\b[\w+.-]+://)[^\s/@\"']*@"), rf"\1{_HIDDEN}@"),
    (re.compile(r"([/\w][^\s?\"'<>]*)\?[^\s\"'<>)]+=[^\s\"'<>)]*"), rf"\1?{_HIDDEN}"),
    # Headers and fields that hold them.
    (re.compile(r"(?i)\b(basic|bearer|token)(\s+)[\w.~+/-]{16,}=*"), rf"\1\2{_HIDDEN}"),
    (
        re.compile(
            r"(?i)(\b\w*(?:token|password|secret|api_?key)['\"]?\s*[:=]\s*)"
            r"(?:'[^']+'|\"[^\"]+\"|[^\s,;'\"})]+)"
        ),
        rf"\1{_HIDDEN}",
    ),
    # Label Studio's tokens: JSON web tokens, and legacy ones.
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]+\.[\w-]*"), _HIDDEN),
    (re.compile(r"\b[0-9a-f]{40}\b"), _HIDDEN),
)
# A line of the log is one line, whatever a request says.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), 127, 0x85, 0x2028, 0x2029)}

_request: ContextVar[str] = ContextVar("request", default="")


def current_request() -> str:
    """Return the name of the request that is being answered; empty if there is none."""
    return _request.get()


@contextmanager
def request_named(request_id: str) -> Iterator[None]:
    """Name the request whose lines are written in this block."""
    token = _request.set(request_id)
    try:
        yield
    finally:
        _request.reset(token)


def name_request(request_id: str) -> None:
    """Name the request whose lines this thread writes from now on; empty for none."""
    _request.set(request_id)


class Redactor:
    """Leaves out what must not be seen.

    Parameters
    ----------
    settings
        Whose secrets are looked for besides what looks like one.
    """

    def __init__(self, settings: Settings) -> None:
        secrets = {getattr(settings, name).get_secret_value() for name in SECRETS}
        password = settings.basic_auth_password.get_secret_value()
        login = f"{settings.basic_auth_user}:{password}".encode()
        secrets.add(base64.b64encode(login).decode())
        with suppress(ArgumentError):
            secrets.add(make_url(settings.database).password or "")
        longest_first = sorted(secrets, key=len, reverse=True)
        known = [re.escape(secret) for secret in longest_first if len(secret) >= _SHORTEST_SECRET]
        self._known = re.compile("|".join(known)) if known else None

    def __call__(self, text: str) -> str:
        """Return a text without secrets."""
        if self._known is not None:
            text = self._known.sub(_HIDDEN, text)
        for pattern, instead in _PATTERNS:
            text = pattern.sub(instead, text)
        return text


class _Formatter(logging.Formatter):
    """Common to both forms.

    Parameters
    ----------
    settings
        Whose secrets are left out.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._redact = Redactor(settings)

    def _message(self, record: logging.LogRecord) -> str:
        # Cut first: the patterns never see more than that.
        return self._redact(record.getMessage()[:MAX_MESSAGE])

    def _traceback(self, record: logging.LogRecord) -> str:
        if not record.exc_info:
            return ""
        # The end says what happened.
        return self._redact(self.formatException(record.exc_info)[-MAX_TRACEBACK:])


class TextFormatter(_Formatter):
    """Time, level, who, which request, and what."""

    def format(self, record: logging.LogRecord) -> str:
        """Give a line, and the lines of a traceback after it."""
        request = _request_of(record)
        parts = [
            f"{_time(record)} {record.levelname} {record.name}",
            f" [{request}]: " if request else ": ",
            self._message(record).translate(_CONTROLS),
        ]
        traceback = self._traceback(record)
        return "".join(parts) + (f"\n{traceback}" if traceback else "")


class JsonFormatter(_Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Give the line."""
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": self._message(record),
        }
        if request := _request_of(record):
            line["request_id"] = request
        if traceback := self._traceback(record):
            line["exception"] = traceback
        for name, value in getattr(record, "fields", {}).items():
            line[name] = self._redact(value) if isinstance(value, str) else value
        return json.dumps(line, ensure_ascii=False)


def formatter(settings: Settings) -> logging.Formatter:
    """Make what `Settings.log_format` asks for."""
    return JsonFormatter(settings) if settings.log_format == "json" else TextFormatter(settings)


def configure(settings: Settings) -> None:
    """Let everything that this process logs go to standard error, in the form that is set."""
    handler = logging.StreamHandler()
    handler.setFormatter(formatter(settings))
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)
    logging.captureWarnings(True)
    logging.getLogger("alembic.runtime.plugins").setLevel(logging.WARNING)


class GunicornLog(Logger):
    """Gunicorn's own log and its log of requests, in the same form."""

    def setup(self, cfg: Any) -> None:
        """Take the form from the environment."""
        super().setup(cfg)
        chosen = formatter(Settings.from_environment())
        for handler in (*self.error_log.handlers, *self.access_log.handlers):
            handler.setFormatter(chosen)

    def access(self, resp: Any, req: Any, environ: Any, request_time: Any) -> None:
        """Log a request: neither its query nor its referrer, which may hold tokens.

        A probe that all is well with is left out: there is one every few seconds.
        """
        if not self.cfg.accesslog:
            return
        headers = {name.lower(): value for name, value in resp.headers}
        fields = {
            "request_id": headers.get("x-request-id", ""),
            "client": environ.get("REMOTE_ADDR", ""),
            "method": environ.get("REQUEST_METHOD", ""),
            "path": environ.get("PATH_INFO", "")[:200],
            "status": int(str(resp.status).split(None, 1)[0]),
            "bytes": getattr(resp, "sent", None),
            "milliseconds": round(request_time.total_seconds() * 1000),
        }
        if fields["path"] in PROBES and fields["status"] == HTTPStatus.OK:
            return
        message = "{client} {method} {path} {status}, {bytes} bytes, {milliseconds} ms"
        self.access_log.info("%s", message.format_map(fields), extra={"fields": fields})


def _request_of(record: logging.LogRecord) -> str:
    fields = getattr(record, "fields", {})
    return str(fields.get("request_id", "")) or _request.get()


def _time(record: logging.LogRecord) -> str:
    time = datetime.fromtimestamp(record.created, UTC)
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
