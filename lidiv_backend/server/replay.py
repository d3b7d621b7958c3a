"""The command `lidiv replay`: what annotators clicked, rerun against other models."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from tqdm import tqdm

from lidiv_backend.errors import BadRequestError, DataError
from lidiv_backend.evaluation.methods import MethodSpec, load_method, version_of
from lidiv_backend.evaluation.recorded import read_interactions, write_interactions
from lidiv_backend.evaluation.replay import (
    ACCEPTED_IOU,
    Interaction,
    Replayed,
    ReplayLog,
    render_replay,
    replay,
    replay_json,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `lidiv replay`."""
    parser.add_argument(
        "--methods",
        default="default",
        help="separated by commas, each may be label=method, as in `lidiv evaluate`",
    )
    parser.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="FILE",
        help="a file that --export wrote; the server's database if not given",
    )
    parser.add_argument(
        "--project", metavar="ID", help="only this project of the database; all if not given"
    )
    parser.add_argument(
        "--export",
        type=Path,
        metavar="FILE.zip",
        help="write clicks, images and masks into a file, and rerun nothing",
    )
    parser.add_argument(
        "--accepted-iou",
        type=float,
        default=ACCEPTED_IOU,
        help="the annotator would have stopped at this IoU with the accepted mask",
    )
    parser.add_argument(
        "--out", type=Path, help="folder for the results; a repeated command goes on with it"
    )


def run(args: argparse.Namespace) -> int:
    """Run `lidiv replay`.

    Raises
    ------
    LidivError
        If the database, the file or a method cannot be used, or there is nothing to rerun.
    """
    if not 0 < args.accepted_iou <= 1:
        raise BadRequestError(
            f"An IoU of {args.accepted_iou} cannot be.", remedy="Give one above 0 and at most 1."
        )
    if args.source is not None and args.project is not None:
        raise BadRequestError(
            "--project chooses from the database, not from a file.", remedy="Leave one away."
        )
    if args.export is not None:
        written = write_interactions(args.export, _interactions(args))
        print(f"{written} masks with their clicks are in {args.export}")
        return 0
    # Opened first, so that a typing error is answered at once.
    specs = [MethodSpec.parse(text) for text in args.methods.split(",")]
    methods = {spec.label: load_method(spec) for spec in specs}
    if len(methods) < len(specs):
        raise BadRequestError("Two methods are called alike.", remedy="Write label=method.")
    log = ReplayLog(args.out)
    results: dict[str, list[Replayed]] = {}
    for label, method in methods.items():
        key = f"{version_of(method)} at {args.accepted_iou:g}"
        results[label] = []
        for interaction in tqdm(_interactions(args), desc=label, unit="mask"):
            replayed = log.find(key, interaction.name)
            if replayed is None:
                (replayed,) = replay(method, [interaction], accepted_iou=args.accepted_iou)
                log.append(key, replayed)
            results[label].append(replayed)
    if not any(results.values()):
        raise DataError(
            "There is no accepted mask that was made by clicks.",
            remedy="Annotate with the backend first, or name another project or file.",
        )
    text = render_replay(results, accepted_iou=args.accepted_iou)
    if args.out is not None:
        (args.out / "replay.md").write_text(text, encoding="utf-8")
        (args.out / "replay.json").write_text(
            replay_json(results, accepted_iou=args.accepted_iou), encoding="utf-8"
        )
    sys.stdout.write(text)
    return 0


def _interactions(args: argparse.Namespace) -> Iterator[Interaction]:
    if args.source is not None:
        yield from read_interactions(args.source)
        return
    # Imported here: a file can be rerun where nothing of the server is installed.
    from lidiv_backend.learning.interactions import recorded_interactions
    from lidiv_backend.learning.store import Store
    from lidiv_backend.learning.vault import Vault
    from lidiv_backend.learning.worker import StateFolders
    from lidiv_backend.server.connections import find_connection, image_source
    from lidiv_backend.server.finetune import find_project
    from lidiv_backend.server.settings import Settings

    settings = Settings.from_environment()
    images = image_source(settings)
    with closing(Store(settings.database)) as store:
        projects = None if args.project is None else [find_project(store, args.project)]
        yield from recorded_interactions(
            store,
            Vault(StateFolders(state=settings.state_folder).vault),
            lambda project, task, address: images.rgb(
                address, find_connection(settings, store, project), task=task
            ),
            projects=projects,
            tell=lambda problem: tqdm.write(problem, file=sys.stderr),
        )
