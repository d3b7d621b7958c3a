"""What the annotators shall do; handed to the process that plays them."""

from __future__ import annotations

import ipaddress
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from lidiv_backend.errors import BadRequestError

#: Variable that names the file with the plan.
VARIABLE = "LIDIV_LOADTEST_PLAN"
#: More than this is not played, whoever asks for it.
MAX_ANNOTATORS, MAX_SECONDS = 400, 3600.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the annotators shall do.

    Parameters
    ----------
    url
        The server, on the loopback address.
    annotators
        How many; the first step's where `step` is given.
    seconds
        How long, at most.
    thought_seconds
        Between an answer and the next click, on average.
    image_seconds
        How long an annotator stays with an image.
    sizes
        Width and height of the photographs, which are taken in turn.
    label_config
        The project's.
    webhook_secret
        What webhooks carry.
    events
        File that every request is noted in, a JSON object a line.
    step, step_seconds
        So many more annotators, each time after so long; 0 for always the same.
    limit_ms
        Steps end when the 95th percentile of further clicks is above it.
    seed
        Of everything random.

    Raises
    ------
    BadRequestError
        If the server is on another machine, or too much is asked for.
    """

    url: str
    annotators: int
    seconds: float
    thought_seconds: float
    image_seconds: float
    sizes: tuple[tuple[int, int], ...]
    label_config: str
    webhook_secret: str
    events: str
    step: int = 0
    step_seconds: float = 0.0
    limit_ms: float = 1500.0
    seed: int = 0

    def __post_init__(self) -> None:
        require_loopback(self.url)
        for name, value, most in (
            ("annotators", self.annotators, MAX_ANNOTATORS),
            ("seconds", self.seconds, MAX_SECONDS),
        ):
            if not 0 < value <= most:
                raise BadRequestError(
                    f"{value:g} {name} are not played.", remedy=f"Choose up to {most:g}."
                )

    def write(self, path: Path) -> None:
        """Write it as JSON, readable by its owner alone."""
        path.touch(mode=0o600)
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Plan:
        """Read what `write` wrote."""
        values = json.loads(path.read_text(encoding="utf-8"))
        values["sizes"] = tuple((width, height) for width, height in values["sizes"])
        return cls(**values)


def require_loopback(url: str) -> None:
    """Refuse an address that is not this machine's own.

    Raises
    ------
    BadRequestError
        If it is.
    """
    host = urlsplit(url).hostname or ""
    try:
        is_here = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_here = host == "localhost"
    if not is_here:
        raise BadRequestError(
            f"{url} is not on this machine's loopback address.",
            remedy="Load is put on servers that run here and nowhere else.",
        )
