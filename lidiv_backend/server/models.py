"""The command `lidiv models`: the versions of the model, and which of them is in use."""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime

from lidiv_backend.errors import BadRequestError
from lidiv_backend.learning.registry import BASE, SHARED, ModelRegistry, channel_of
from lidiv_backend.learning.store import Store
from lidiv_backend.server.settings import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments.

    Parameters
    ----------
    parser
        Takes them.
    """
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", help="all versions, the newest first, and what is in use")
    show = actions.add_parser("show", help="what a version comes from and what the gate said")
    promote = actions.add_parser("promote", help="put a version in use")
    rollback = actions.add_parser("rollback", help="put the version before in use again")
    pin = actions.add_parser("pin", help="keep a version whatever happens")
    unpin = actions.add_parser("unpin", help="let a version go once it is old")
    for action in (show, promote, pin, unpin):
        action.add_argument("version", help=f"name of a version; '{BASE}' for the preset")
    for action in (promote, rollback):
        action.add_argument(
            "--project",
            metavar="ID",
            help="number of the project that learns by itself, or its name in the list; the shared "
            "model if not given",
        )


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Raises
    ------
    LidivError
        If there is no such version or project, or the version is damaged.
    """
    settings = Settings.from_environment()
    registry = ModelRegistry(settings.state_folder, base=settings.preset)
    project = getattr(args, "project", None)
    channel = SHARED if project is None else _find_channel(settings, registry, project)
    if args.action == "list":
        _list(registry)
    elif args.action == "show":
        _show(registry, args.version)
    elif args.action == "promote":
        registry.promote(channel, args.version)
        print(f"{channel}: {registry.pointer(channel).version} is in use.")
    elif args.action == "rollback":
        print(f"{channel}: {registry.rollback(channel)} is in use again.")
    elif args.action == "pin":
        registry.pin(args.version)
        print(f"{args.version} is kept whatever happens.")
    else:
        registry.unpin(args.version)
        print(f"{args.version} goes once it is old.")
    return 0


def _find_channel(settings: Settings, registry: ModelRegistry, project: str) -> str:
    """Find the channel of a project, by the project's number, its whole name or the channel's."""
    store = Store(settings.database)
    try:
        known = {channel_of(name) for name in store.annotated_projects()}
    finally:
        store.close()
    known |= {*registry.channels()} - {SHARED}
    names = (project, channel_of(project))
    found = [name for name in known if name in names or name.partition(".")[0] in names]
    if len(found) != 1:
        raise BadRequestError(
            f"{len(found) or 'No'} projects that learn by themselves have the number {project}.",
            remedy=f"Known are {', '.join(sorted(known)) or 'none'}; these names are taken, too.",
        )
    return found[0]


def _list(registry: ModelRegistry) -> None:
    for channel in registry.channels() or [SHARED]:
        version = registry.pointer(channel).version
        shown = f"the preset {registry.base}" if version == BASE else version
        print(f"{channel}: {shown} is in use")
    for entry in registry.versions():
        added = datetime.fromtimestamp(entry.added, UTC).strftime("%Y-%m-%d %H:%M UTC")
        marks = [f"in use: {', '.join(entry.in_use)}"] if entry.in_use else []
        marks += ["pinned"] if entry.pinned else []
        print(f"{entry.version}  {added}  {'; '.join(marks)}".rstrip())


def _show(registry: ModelRegistry, version: str) -> None:
    folder = registry.source(version)
    print(f"{version}: {folder}")
    if report := registry.report(version):
        print(json.dumps(report, indent=1, sort_keys=True))
