from __future__ import annotations

import re
from pathlib import Path

import pytest

from lidiv_backend.cli import main
from lidiv_backend.server.settings_command import TABLES, described_settings

PAGE = Path(__file__).parents[2] / "docs" / "operate.md"
_ROW = re.compile(r"^\| `(LIDIV_[A-Z_]+)` \| (.*?) \| (.+) \|$", re.MULTILINE)


@pytest.mark.parametrize("title", TABLES)
def test_every_setting_has_a_row_that_says_something(title: str) -> None:
    module, settings = TABLES[title]
    described = described_settings(module)
    names = {re.sub("^LIDIV_(LEARN_)?", "", variable) for variable in described}
    assert names == {name.upper() for name in settings.model_fields}
    assert all(len(text) > 10 for text in described.values())


def test_variables_that_share_a_row_have_the_same_words() -> None:
    module, _ = TABLES["The server"]
    described = described_settings(module)
    assert described["LIDIV_BASIC_AUTH_USER"] == described["LIDIV_BASIC_AUTH_PASSWORD"]
    assert described["LIDIV_STATE"].startswith("folder of the database")


def test_defaults_are_those_of_the_classes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings"]) == 0
    rows = {name: default for name, default, _ in _ROW.findall(capsys.readouterr().out)}
    assert rows["LIDIV_BIND"] == "`127.0.0.1:9090`"
    assert rows["LIDIV_LEARN_SHARED"] == "`true`"
    assert rows["LIDIV_LABEL_STUDIO_TOKEN"] == ""


def test_the_page_is_up_to_date(tmp_path: Path) -> None:
    written = tmp_path / "page.md"
    written.write_text(PAGE.read_text())
    assert main(["settings", "--insert", str(written)]) == 0
    now, page = (_ROW.findall(text) for text in (written.read_text(), PAGE.read_text()))
    assert page == now, "run `lidiv settings --insert docs/operate.md`"
