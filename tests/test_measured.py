from pathlib import Path

import pytest

from lidiv_backend.errors import BadRequestError
from lidiv_backend.measured import insert_measured

PAGE = "before\n<!-- measured: speed -->\nold \\1 table\n<!-- end: speed -->\nafter\n"


def test_replaces_only_the_marked_section(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text(PAGE)

    insert_measured(page, "speed", "| new \\g<0> |\n", command="lidiv benchmark")

    assert page.read_text() == (
        "before\n<!-- measured: speed -->\n| new \\g<0> |\n\nMeasured with `lidiv benchmark`.\n"
        "<!-- end: speed -->\nafter\n"
    )


def test_inserting_twice_gives_the_same_page(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text(PAGE)
    insert_measured(page, "speed", "text", command="x")
    once = page.read_text()

    insert_measured(page, "speed", "text", command="x")

    assert page.read_text() == once


def test_page_without_the_section_is_refused_and_unchanged(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("nothing here\n")

    with pytest.raises(BadRequestError, match="speed"):
        insert_measured(page, "speed", "text", command="x")

    assert page.read_text() == "nothing here\n"
