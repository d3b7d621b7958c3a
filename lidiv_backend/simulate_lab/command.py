"""The command `lidiv simulate-lab`: a lab's first day with a real Label Studio.

Annotators click in Label Studio, its webhooks tell the backend, training starts by itself, the gate
decides, and clicks are counted before and after on images that nobody annotated.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import signal
from pathlib import Path

from lidiv_backend.demo import label_studio
from lidiv_backend.demo.stack import StackSettings, fetch_model, running_stack
from lidiv_backend.errors import BadRequestError, DataError, LidivError
from lidiv_backend.evaluation.datasets import open_data_set
from lidiv_backend.learning.files import read_json, write_json
from lidiv_backend.learning.gate import Comparison
from lidiv_backend.learning.registry import ModelRegistry
from lidiv_backend.measured import insert_measured
from lidiv_backend.predictor import Predictor
from lidiv_backend.simulate_lab import outcome
from lidiv_backend.simulate_lab.day import (
    Day,
    annotate,
    read_day,
    summarise,
    time_webhooks,
    wait_for_verdict,
    wait_until_served,
    write_day,
)
from lidiv_backend.simulate_lab.material import Material, divide, write_images
from lidiv_backend.simulate_lab.textures import Textures
from lidiv_backend.simulate_lab.timing import Timing
from lidiv_backend.training.data import open_image_set

_SETTINGS, _DAY = "settings.json", "day.json"
#: What a day begins with cannot change while it goes on.
_FIXED = ("data", "images", "held_back", "objects", "seed", "poison")
#: Options that a page is told, where they are not as always.
_TOLD = ("images", "objects", "held_back", "measured", "timed", "benchmark", "seed", "poison")
#: What `--data` says for the lab that is made by code.
TEXTURES = "textures"
#: `--quick`: enough to see that everything works, not what it is worth.
_QUICK = {"images": 6, "held_back": 3, "objects": 2, "measured": 1, "timed": 2, "benchmark": ""}
_QUICK_ENVIRONMENT = {
    "LIDIV_LEARN_STEPS": "4",
    "LIDIV_LEARN_GATE_IMAGES": "4",
    "LIDIV_LEARN_GATE_OBJECTS": "1",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "--data",
        required=True,
        help="images with masks, such as folder:/data/nuclei with images/ and masks/; "
        f"'{TEXTURES}' for a lab that is made by code",
    )
    parser.add_argument(
        "--images", type=int, default=40, help="images that are annotated (%(default)s)"
    )
    parser.add_argument(
        "--objects", type=int, default=5, help="objects of each that are annotated (%(default)s)"
    )
    parser.add_argument(
        "--held-back", type=int, default=50, help="other images, to measure on (%(default)s)"
    )
    parser.add_argument(
        "--measured", type=int, default=2, help="objects of each that are measured (%(default)s)"
    )
    parser.add_argument(
        "--timed",
        type=int,
        default=40,
        help="clicks that are timed, before and while the model is trained (%(default)s)",
    )
    parser.add_argument(
        "--benchmark",
        default="grabcut",
        help="what must not get worse; empty for nothing (%(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the division (%(default)s)")
    parser.add_argument(
        "--poison",
        action="store_true",
        help="give every image the masks of another one; the gate has to refuse what comes of it",
    )
    parser.add_argument(
        "--quick", action="store_true", help="a few images and steps: whether it works at all"
    )
    parser.add_argument(
        "--minutes", type=float, default=60.0, help="wait so long for the verdict (%(default)s)"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(".simulated-lab"),
        help="keeps everything, and goes on where it was stopped (%(default)s)",
    )
    parser.add_argument(
        "--again", action="store_true", help="empty the folder first, and begin a new day"
    )
    parser.add_argument(
        "--insert",
        type=Path,
        metavar="PAGE",
        help="put the table into this page's section 'simulated lab', 'poisoned lab' or "
        "'simulated textures'",
    )
    parser.add_argument(
        "--picture", type=Path, help="draw masks before and after, without the photographs"
    )
    parser.add_argument("--port-label-studio", type=int, default=8090, help="(%(default)s)")
    parser.add_argument("--port-backend", type=int, default=9190, help="(%(default)s)")
    parser.add_argument(
        "--label-studio-environment",
        type=Path,
        default=Path(".venv-labelstudio"),
        help="virtual environment of Label Studio, made by `lidiv demo --prepare` (%(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Replay the day, and say what it brought.

    Returns
    -------
    int
        0 if the gate decided as it should: for what was learnt, or against what is poisoned.

    Raises
    ------
    LidivError
        If something is missing or fails.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    if args.quick:
        vars(args).update(_QUICK)
    if not label_studio.is_installed(args.label_studio_environment):
        raise LidivError(
            f"Label Studio is not in {args.label_studio_environment}.",
            remedy="Install it with `lidiv demo --prepare`.",
        )
    folder = args.folder.resolve()
    _begin(folder, args)
    material = divide(
        Textures() if args.data == TEXTURES else open_image_set(args.data),
        annotated=args.images,
        held_back=args.held_back,
        objects=args.objects,
        measured=args.measured,
        seed=args.seed,
    )
    fetch_model()
    day = read_day(folder / _DAY) if (folder / _DAY).exists() else _live(args, folder, material)
    comparisons = [] if args.poison else _measured(args, folder, day, material)
    text = outcome.table(day, comparisons)
    (folder / "outcome.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    if args.insert:
        insert_measured(args.insert, _section(args), text, command=_words(args))
    return 0 if day.promoted != args.poison or args.quick else 1


def _begin(folder: Path, args: argparse.Namespace) -> None:
    """Make the folder; refuse one that another day has begun in."""
    path = folder / _SETTINGS
    settings = {name: getattr(args, name) for name in _FIXED}
    if args.again and path.exists():
        shutil.rmtree(folder)
    if path.exists() and read_json(path) != settings:
        raise BadRequestError(
            f"{folder} holds another day, of {read_json(path)}.",
            remedy="Give the same options to go on, --again, or another --folder.",
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, settings)


def _live(args: argparse.Namespace, folder: Path, material: Material) -> Day:
    """Everything that needs the services."""
    pictures = folder / "pictures"
    write_images(material.annotated, pictures)
    settings = StackSettings(
        folder=folder,
        label_studio_environment=args.label_studio_environment,
        label_studio_port=args.port_label_studio,
        backend_port=args.port_backend,
        # One run, when all are done; and only this one, however often the command is repeated.
        backend_environment={
            "LIDIV_LEARN_AFTER": str(args.images),
            "LIDIV_LEARN_SHARED": "true",
            "LIDIV_DATABASE_URL": "",
            "LIDIV_METRICS": "open",
            **(_QUICK_ENVIRONMENT if args.quick else {}),
        },
    )
    print(f"Starting Label Studio and the backend; logs are in {folder / 'logs'}.", flush=True)
    with running_stack(settings) as stack:
        annotated = annotate(
            stack, material.annotated, pictures, poison=args.poison, timed=args.timed
        )
        learnt, times = wait_for_verdict(stack, minutes=args.minutes, timer=annotated.timer)
        served = ""
        if learnt.promoted and learnt.candidate:
            served = wait_until_served(stack, learnt.candidate)
        webhooks, prompt = time_webhooks(stack)
        timing = Timing(before=annotated.before, training=times, webhooks=webhooks, prompt=prompt)
        day = summarise(stack, annotated.made, args.images, learnt, served, timing)
    if day.promoted and day.served != day.version:
        raise LidivError(
            f"The backend serves {day.served or 'nothing'} instead of {day.version}.",
            remedy=f"The logs are in {folder / 'logs'}.",
        )
    write_day(folder / _DAY, day)
    return day


def _measured(
    args: argparse.Namespace, folder: Path, day: Day, material: Material
) -> list[Comparison]:
    """Clicks before and after, on what was held back and on the benchmark."""
    registry = ModelRegistry(folder / "backend", base=os.environ.get("LIDIV_PRESET") or "default")
    before = Predictor.from_pretrained(registry.source(day.before))
    after = Predictor.from_pretrained(registry.source(day.version))
    found = [
        outcome.measured(
            folder / "held-back.json", after, before, material.held_back, objects=args.measured
        )
    ]
    if args.benchmark:
        try:
            benchmark = open_data_set(args.benchmark)
        except DataError as error:
            print(f"Not measured: {error}")
        else:
            path = folder / "benchmark.json"
            found.append(outcome.measured(path, after, before, benchmark, objects=1))
    if args.picture:
        outcome.draw(material.held_back, before, after, args.picture)
    return found


def _section(args: argparse.Namespace) -> str:
    """Name the section of a page that this kind of day has."""
    if args.poison:
        return "poisoned lab"
    return "simulated textures" if args.data == TEXTURES else "simulated lab"


def _words(args: argparse.Namespace) -> str:
    """The command as it can be repeated, without anybody's own folders."""
    kind, colon, place = args.data.partition(":")
    words = [
        "lidiv",
        "simulate-lab",
        "--data",
        kind + colon + re.sub(r".*/", "", place.rstrip("/")),
    ]
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    for name in _TOLD:
        value = getattr(args, name)
        if value != parser.get_default(name):
            words.append(f"--{name.replace('_', '-')}")
            words += [] if value is True else [str(value)]
    return shlex.join(words)
