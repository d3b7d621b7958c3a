"""Environment variables that the package reads."""

from __future__ import annotations

import importlib.util
import re

from lidiv_backend.server import settings

#: Read where no settings are: by the parts that run without pydantic.
_ELSEWHERE = {"LIDIV_CACHE", "LIDIV_DATA", "LIDIV_WEIGHTS"}


def known_variables() -> set[str]:
    """Give every variable that the server, the learning worker or the weights look at."""
    described = [settings.__doc__ or ""]
    if importlib.util.find_spec("lidiv_backend.learning.settings"):
        module = importlib.import_module("lidiv_backend.learning.settings")
        described.append(module.__doc__ or "")
    names = set(re.findall(r"``(LIDIV_[A-Z_]+)``", "\n".join(described)))
    return names | {f"LIDIV_{name.upper()}_FILE" for name in settings.SECRETS} | _ELSEWHERE
