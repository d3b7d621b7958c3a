"""The command `lidiv restore`."""

from __future__ import annotations

import argparse
from pathlib import Path

from tqdm import tqdm

from lidiv_backend.learning.backup import restore
from lidiv_backend.server.backup import described, installation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments.

    Parameters
    ----------
    parser
        Takes them.
    """
    parser.add_argument("file", type=Path, help="an archive of `lidiv backup`")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace what the installation holds now"
    )


def run(args: argparse.Namespace) -> int:
    """Put an archive's database and versions back; an older database is brought up to date.

    Raises
    ------
    LidivError
        If the archive is damaged, or something is in its place; then nothing was changed.
    """
    place = installation()
    with tqdm(desc="Checking and unpacking", unit="B", unit_scale=True) as bar:
        content = restore(args.file, place, overwrite=args.overwrite, progress=bar.update)
    print(f"Restored into {place.state} and {place.url.render_as_string(hide_password=True)}:")
    print(described(content))
    return 0
