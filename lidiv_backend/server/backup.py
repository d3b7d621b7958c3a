"""The command `lidiv backup`."""

from __future__ import annotations

import argparse
from pathlib import Path

from tqdm import tqdm

from lidiv_backend.learning.backup import ArchiveContent, Installation, back_up
from lidiv_backend.server.settings import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments.

    Parameters
    ----------
    parser
        Takes them.
    """
    parser.add_argument("file", type=Path, help="the archive to write, such as lidiv.tar")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an archive that is there already"
    )


def run(args: argparse.Namespace) -> int:
    """Write the database and the versions of the model into one file, while servers serve.

    Raises
    ------
    LidivError
        If something cannot be read or written; then there is no archive, or still the old one.
    """
    with tqdm(desc="Backing up", unit="B", unit_scale=True) as bar:
        content = back_up(installation(), args.file, overwrite=args.overwrite, progress=bar.update)
    print(f"{args.file}: {described(content)}")
    for name in content.missing[:10]:
        print(f"Was missing already, and is not in it: {name}")
    if len(content.missing) > 10:
        print(f"... and {len(content.missing) - 10} more.")
    return 0


def installation() -> Installation:
    """Give the installation that the environment names.

    Raises
    ------
    LidivError
        If a setting is wrong.
    """
    settings = Settings.from_environment()
    return Installation(state=settings.state_folder, database=settings.database)


def described(content: ArchiveContent) -> str:
    """Say in a line what an archive holds."""
    rows = sum(content.rows.values())
    return (
        f"{len(content.files)} files, {content.size / 1e6:.1f} MB, {rows} rows of revision "
        f"{content.revision}, made {content.created} by LiDiv {content.release}"
    )
