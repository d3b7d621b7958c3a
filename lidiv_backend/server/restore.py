"""The command `lidiv restore`."""

from __future__ import annotations

import argparse
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path

from tqdm import tqdm

from lidiv_backend.learning.backup import restore
from lidiv_backend.server.backup import STREAM, described, installation, spool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments.

    Parameters
    ----------
    parser
        Takes them.
    """
    parser.add_argument(
        "file", type=Path, help="an archive of `lidiv backup`; - for standard input"
    )
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
    with ExitStack() as cleanup:
        archive = args.file
        if archive == STREAM:
            archive = cleanup.enter_context(spool(place.state)) / "archive"
            with archive.open("wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
        bar = cleanup.enter_context(tqdm(desc="Checking", unit="B", unit_scale=True))
        content = restore(archive, place, overwrite=args.overwrite, progress=bar.update)
    print(f"Restored into {place.state} and {place.url.render_as_string(hide_password=True)}:")
    print(described(content))
    return 0
