"""Exceptions from the security rules (Ruff's S, which are Bandit's) say why."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: An assertion tells the type checker what it cannot know; nothing depends on it.
OBVIOUS = {"S101"}
_EXCEPTION = re.compile(r"#\s*noqa:\s*(?P<rules>S\d+(?:\s*,\s*\w+)*)(?P<reason>\s+- \S.*)?")


def without_reason(text: str) -> list[str]:
    return [
        line.strip()
        for line in text.splitlines()
        if (found := _EXCEPTION.search(line)) is not None
        and not found["reason"]
        and not set(re.split(r"\s*,\s*", found["rules"])) <= OBVIOUS
    ]


@pytest.mark.parametrize("folder", ["lidiv_backend", "deploy"])
def test_every_exception_has_its_reason(folder: str) -> None:
    missing = {
        str(path.relative_to(ROOT)): lines
        for path in (ROOT / folder).rglob("*.py")
        if (lines := without_reason(path.read_text(encoding="utf-8")))
    }
    assert missing == {}


def test_a_missing_reason_is_noticed() -> None:
    assert without_reason("run(x)  # noqa: S603") == ["run(x)  # noqa: S603"]
    assert without_reason("run(x)  # noqa: S603 - our own command") == []
    assert without_reason("assert x  # noqa: S101") == []
    assert without_reason("x = 5  # noqa: N806") == []
