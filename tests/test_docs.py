"""What the pages tell people to type and to set exists."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

from lidiv_backend.cli import COMMANDS, main
from lidiv_backend.labelstudio.config import parse_label_config
from lidiv_backend.server.settings_command import TABLES, described_settings

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# Read where the server's settings do not reach: by tests, data sets, and the cache of encoders.
ELSEWHERE = {
    "LIDIV_DATA",
    "LIDIV_CACHE",
    "LIDIV_WEIGHTS",
    "LIDIV_CHROMIUM",
    "LIDIV_PICTURES",
    "LIDIV_ML_ENV",
}


def blocks(page: Path, language: str = "") -> list[str]:
    """The fenced blocks of a page; those of a language, or without one, if it is given."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [text for kind, text in found if kind == language]


def commands(page: Path) -> list[str]:
    """Lines of a page's shell blocks, continued ones joined, comments left out."""
    text = "\n".join([*blocks(page, "sh"), *blocks(page)]).replace("\\\n", " ")
    return [line.strip() for line in text.splitlines() if line.strip()]


def of_lidiv() -> list[str]:
    found = set()
    for page in PAGES:
        for line in commands(page):
            words = re.split(r"\s+(?:#|<|>)\s", line)[0]
            if words.startswith("kubectl "):  # what a pod is told, if anything
                words = words.partition(" -- ")[2]
            match = re.search(r"(?:^|\s|bin/)lidiv ([a-z-]+\b.*)|-m lidiv_backend\.cli (.+)", words)
            if match and not words.startswith("docker build"):
                found.add((match[1] or match[2]).strip())
    return sorted(found)


@pytest.mark.parametrize("line", of_lidiv())
def test_commands_are_understood(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(line)
    module = importlib.import_module(COMMANDS[words[0]][0])
    seen = []
    monkeypatch.setattr(module, "run", lambda args: seen.append(args) or 0)
    assert main(words) == 0
    assert len(seen) == 1


def test_there_are_commands() -> None:
    assert len(of_lidiv()) > 10


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for line in commands(page):
            if line.startswith("make "):
                assert line.split()[1] in targets, f"{page.name}: {line}"


def test_settings_exist() -> None:
    known = {name for module, _ in TABLES.values() for name in described_settings(module)}
    for page in PAGES:
        for name in re.findall(r"\bLIDIV_[A-Z_]+\b", page.read_text()):
            base = name.removesuffix("_FILE")
            assert {name, base} & (known | ELSEWHERE), f"{page.name}: {name}"


def test_label_configs_fit() -> None:
    configs = [
        text for page in PAGES for text in blocks(page, "xml") if text.lstrip().startswith("<View>")
    ]
    assert configs
    for config in configs:
        assert parse_label_config(config).images[0].smart_keypoints


def test_pictures_are_small_and_all_used() -> None:
    used = {
        (page.parent / name).resolve()
        for page in PAGES
        for name in re.findall(r"!\[[^\]]+\]\(([^)#]+\.png)\)", page.read_text())
    }
    assert used
    for picture in used:
        assert picture.stat().st_size < 200_000
    for picture in (ROOT / "docs" / "pictures").glob("*.png"):
        assert picture.resolve() in used, f"{picture.name} is on no page"
