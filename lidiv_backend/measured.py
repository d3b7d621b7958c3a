"""Measured tables in pages that people read: a command puts them there, nobody types them."""

from __future__ import annotations

import re
from pathlib import Path

from lidiv_backend.errors import BadRequestError


def insert_measured(
    page: Path, name: str, text: str, *, command: str, said: str = "Measured with"
) -> None:
    """Replace a marked section of a Markdown page.

    The section lies between ``<!-- measured: NAME -->`` and ``<!-- end: NAME -->``.

    Parameters
    ----------
    page
        The page; it is written aside and renamed.
    name
        Name of the section.
    text
        Markdown.
    command
        What was typed to measure it; written under the text.
    said
        How that line begins.

    Raises
    ------
    BadRequestError
        If the page has no such section.
    """
    content = page.read_text(encoding="utf-8")
    section = re.compile(
        rf"(<!-- measured: {re.escape(name)} -->\n).*?(<!-- end: {re.escape(name)} -->)", re.DOTALL
    )
    body = f"{text.strip()}\n\n{said} `{command}`.\n"
    changed, count = section.subn(lambda found: found[1] + body + found[2], content)
    if count != 1:
        raise BadRequestError(
            f"{page} has {count} sections <!-- measured: {name} -->.",
            remedy="Put the two comments once where the table belongs.",
        )
    aside = page.with_name(f"{page.name}.part")
    aside.write_text(changed, encoding="utf-8")
    aside.replace(page)
