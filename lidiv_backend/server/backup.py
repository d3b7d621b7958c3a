"""The command `lidiv backup`."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tqdm import tqdm

from lidiv_backend.learning.backup import ArchiveContent, Installation, back_up
from lidiv_backend.learning.files import ASIDE, explained
from lidiv_backend.server.settings import Settings

#: Stands for standard output, and for standard input.
STREAM = Path("-")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments.

    Parameters
    ----------
    parser
        Takes them.
    """
    parser.add_argument(
        "file", type=Path, help="the archive to write, such as lidiv.tar; - for standard output"
    )
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
    place = installation()
    with ExitStack() as cleanup:
        bar = cleanup.enter_context(tqdm(desc="Backing up", unit="B", unit_scale=True))
        archive = args.file
        if archive == STREAM:
            # Written whole before, so that nobody is given half of one.
            archive = cleanup.enter_context(spool(place.state)) / "archive"
        content = back_up(place, archive, overwrite=args.overwrite, progress=bar.update)
        if args.file == STREAM:
            with archive.open("rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.flush()
    told = [f"{args.file}: {described(content)}"]
    told += [f"Was missing already, and is not in it: {name}" for name in content.missing[:10]]
    if len(content.missing) > 10:
        told.append(f"... and {len(content.missing) - 10} more.")
    print("\n".join(told), file=sys.stderr if args.file == STREAM else sys.stdout)
    return 0


@contextmanager
def spool(state: Path) -> Iterator[Path]:
    """Make a folder where an archive fits, since what it holds came from there or goes there."""
    with explained(f"Writing into {state}"):
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=state, prefix=ASIDE) as folder:
            yield Path(folder)


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
