"""Exceptions from the security rules, Ruff's S and Bandit's, say why."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: An assertion tells the type checker what it cannot know; nothing depends on it.
OBVIOUS = {"S101"}
#: Rules of Bandit's that are not followed, and why.
NOT_FOLLOWED = {
    "B404": "importing subprocess does nothing; each of its uses is judged, B603",
    "B405": "importing ElementTree does nothing; each of its uses is judged, B314",
}
#: What Bandit takes for something else: rule, file, the line -> why it is wrong.
MISTAKEN = {
    ("B105", "lidiv_backend/loadtest/bodies.py", '"password": None,'): "null, as it is really sent",
}
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


def bandit_finds(*paths: Path) -> list[tuple[str, str, list[str]]]:
    """Rule, file and lines of each thing that Bandit finds."""
    command = [sys.executable, "-m", "bandit", "--quiet", "--recursive", "--format", "json"]
    told = subprocess.run([*command, *map(str, paths)], capture_output=True, cwd=ROOT)
    report = json.loads(told.stdout)
    assert report["errors"] == []
    found = []
    for result in report["results"]:
        lines = (ROOT / result["filename"]).read_text(encoding="utf-8").splitlines()
        these = [lines[number - 1].strip() for number in result["line_range"]]
        found.append((result["test_id"], result["filename"].removeprefix(f"{ROOT}/"), these))
    return found


def is_excepted(rule: str, path: str, lines: list[str]) -> bool:
    """Whether a finding has the exception of the same number that Ruff has."""
    if rule in NOT_FOLLOWED or any((rule, path, line) in MISTAKEN for line in lines):
        return True
    exceptions = [found["rules"] for line in lines if (found := _EXCEPTION.search(line))]
    return any(f"S{rule[1:]}" in re.split(r"\s*,\s*", rules) for rules in exceptions)


def test_bandit_finds_nothing_that_is_no_exception() -> None:
    found = bandit_finds(ROOT / "lidiv_backend", ROOT / "deploy")
    assert [each for each in found if not is_excepted(*each)] == []
    # It was really asked: there are exceptions.
    assert found


def test_what_bandit_finds_elsewhere_is_noticed(tmp_path: Path) -> None:
    text = "import pickle\nbad = pickle.loads(b'')\ngood = pickle.loads(b'')  # noqa: S301 - mine\n"
    path = tmp_path / "code.py"
    path.write_text(text)
    uses = [each for each in bandit_finds(path) if each[0] == "B301"]
    assert [is_excepted(*each) for each in uses] == [False, True]
