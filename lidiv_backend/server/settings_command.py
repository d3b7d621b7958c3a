"""The command `lidiv settings`: every setting, for people to look up."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from lidiv_backend.learning import settings as learning_settings
from lidiv_backend.measured import insert_measured
from lidiv_backend.server import settings as server_settings

#: Headline -> where the settings are described, and the class that reads them.
TABLES: dict[str, tuple[ModuleType, type[BaseModel]]] = {
    "The server": (server_settings, server_settings.Settings),
    "Learning": (learning_settings, learning_settings.LearningSettings),
}

_SECTION = "settings"
_ROW = re.compile(r"^(``LIDIV_[A-Z_]+``),?(?:\s+(.*))?$")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "--insert",
        type=Path,
        metavar="PAGE",
        help=f"write the tables into the section <!-- measured: {_SECTION} --> of a Markdown page",
    )


def run(args: argparse.Namespace) -> int:
    """Print the settings, or put them into a page."""
    text = "\n\n".join(
        f"### {title}\n\n{settings_table(module, settings)}"
        for title, (module, settings) in TABLES.items()
    )
    if args.insert is None:
        print(text)
    else:
        command = f"lidiv settings --insert {args.insert}"
        insert_measured(args.insert, _SECTION, text, command=command, said="Written by")
    return 0


def described_settings(module: ModuleType) -> dict[str, str]:
    """Read the table in a settings module's docstring.

    Parameters
    ----------
    module
        Its docstring describes each variable once.

    Returns
    -------
    dict
        Variable -> what it says, as Markdown. Variables that share a description each have it.
    """
    lines = (module.__doc__ or "").splitlines()
    rules = [number for number, line in enumerate(lines) if line.startswith("=====")]
    described: dict[str, list[str]] = {}
    sharing: list[str] = []
    for line in lines[rules[1] + 1 : rules[2]]:
        row = _ROW.match(line)
        if row is None:
            words = line.strip()
        else:
            name, words = row[1].strip("`"), row[2] or ""
            # A row that only names a variable belongs to the one before.
            sharing = [name] if words else [*sharing, name]
            for each in sharing:
                described.setdefault(each, list(described.get(sharing[0], [])))
        for each in sharing:
            described[each] += [words] if words else []
    return {
        name: re.sub(r"``(.+?)``", r"`\1`", " ".join(words)) for name, words in described.items()
    }


def settings_table(module: ModuleType, settings: type[BaseModel]) -> str:
    """Write the settings of a class as a Markdown table."""
    descriptions = described_settings(module)
    names = {name.upper(): field for name, field in settings.model_fields.items()}
    rows = ["| variable | default | what it says |", "| --- | --- | --- |"]
    for variable, description in descriptions.items():
        field = next(
            (names[name] for name in _short_names(variable) if name in names), FieldInfo(default="")
        )
        shown = description.replace("|", "\\|")
        rows.append(f"| `{variable}` | {_default(field)} | {shown} |")
    return "\n".join(rows)


def _short_names(variable: str) -> tuple[str, ...]:
    return variable.removeprefix("LIDIV_LEARN_"), variable.removeprefix("LIDIV_")


def _default(field: FieldInfo) -> str:
    value: Any = field.default
    if field.default_factory is not None or field.is_required():
        return ""
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if value is None or value == "" or value == ():
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`"
