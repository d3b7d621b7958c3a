from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _forget_accelerate() -> Iterator[None]:
    """Each test may train at a precision of its own: Accelerate remembers one for a process."""
    yield
    state = sys.modules.get("accelerate.state")
    if state is not None:
        state.AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> frozenset[str]:
    """Variables of a lab's installation, set to ``the lab's``."""
    names = frozenset(
        {
            "LIDIV_DATABASE_URL",
            "LIDIV_DATABASE_URL_FILE",
            "LIDIV_BASIC_AUTH_USER",
            "LIDIV_BASIC_AUTH_PASSWORD",
            "LIDIV_BASIC_AUTH_PASSWORD_FILE",
            "LIDIV_LABEL_STUDIO_TOKEN_FILE",
            "LIDIV_WEBHOOK_SECRET_FILE",
        }
    )
    for name in names:
        monkeypatch.setenv(name, "the lab's")
    return names
