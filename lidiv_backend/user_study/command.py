"""The command `lidiv study`: the paper's user study (Section 5.2), for a lab."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import closing
from functools import cache
from pathlib import Path

from tqdm import tqdm

from lidiv_backend.errors import BadRequestError, DataError
from lidiv_backend.evaluation.datasets import known_data_sets, open_data_set
from lidiv_backend.evaluation.methods import MethodSpec, load_method, version_of
from lidiv_backend.evaluation.protocols import Method
from lidiv_backend.user_study.plan import (
    StudyPlan,
    choose_objects,
    draw_tasks,
    has_plan,
    read_plan,
    title_models,
    write_plan,
)

_ABOUT = """\
Every participant gets each of their objects once with every model, in random order, and is not told
which model answers. For each model a backend of its own runs, all with the same LIDIV_STATE (or
LIDIV_DATABASE_URL), which is where the clicks are recorded:

  LIDIV_PRESET=paper   lidiv serve --port 9091
  LIDIV_PRESET=default lidiv serve --port 9092
  lidiv study create --folder study --images davis \\
    --model paper=paper@http://127.0.0.1:9091 --model ours=default@http://127.0.0.1:9092
  lidiv study report --folder study

`create` writes a page of links for each participant. Keep study.json to yourself until the end: it
says which project has which model. A command that was stopped goes on when it is repeated.

images:
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _ABOUT + "\n".join(f"  {line}" for line in known_data_sets())
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    create = actions.add_parser("create", help="draw the tasks and put them into Label Studio")
    create.add_argument("--images", required=True, help="data set that objects are drawn from")
    create.add_argument("--data", type=Path, help="where benchmarks lie; default: LIDIV_DATA")
    create.add_argument(
        "--model",
        action="append",
        required=True,
        metavar="LABEL=SOURCE@URL",
        help="a model, what it is (a preset or a folder of weights), and the address of its "
        "backend as Label Studio reaches it; repeat it",
    )
    create.add_argument("--participants", type=int, default=5)
    create.add_argument(
        "--objects", type=int, default=10, help="for each participant, each with every model"
    )
    create.add_argument("--title", default="Study", help="of the projects; a letter follows")
    create.add_argument("--seed", type=int, default=0)
    create.add_argument(
        "--label-studio",
        metavar="URL",
        default=os.environ.get("LIDIV_LABEL_STUDIO_URL"),
        help="address of Label Studio (default: LIDIV_LABEL_STUDIO_URL)",
    )
    create.add_argument(
        "--token-file",
        type=Path,
        help="file with a token of Label Studio's (default: LIDIV_LABEL_STUDIO_TOKEN)",
    )
    report = actions.add_parser("report", help="draw Figure 6 and write its numbers")
    for action in (create, report):
        action.add_argument("--folder", type=Path, required=True, help="of the study")


def run(args: argparse.Namespace) -> int:
    """Run `lidiv study`."""
    return _create(args) if args.action == "create" else _report(args)


def _create(args: argparse.Namespace) -> int:
    from lidiv_backend.labelstudio.connect import open_client
    from lidiv_backend.server.settings import Settings
    from lidiv_backend.user_study.project import create_projects

    settings = Settings.from_environment()
    token = settings.label_studio_token.get_secret_value()
    if args.token_file is not None:
        try:
            token = args.token_file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise BadRequestError(f"The token cannot be read: {error}.") from error
    if not (args.label_studio and token):
        raise BadRequestError(
            "Which Label Studio?",
            remedy="Give --label-studio and --token-file, or LIDIV_LABEL_STUDIO_URL and "
            "LIDIV_LABEL_STUDIO_TOKEN.",
        )
    plan = read_plan(args.folder) if has_plan(args.folder) else _draw(args)
    password = settings.basic_auth_password.get_secret_value()
    made = create_projects(
        open_client(args.label_studio, token, ca_bundle=settings.ca_bundle),
        plan,
        args.folder,
        url=args.label_studio,
        webhook_secret=settings.webhook_secret.get_secret_value(),
        basic_auth=(settings.basic_auth_user, password) if password else None,
    )
    print(f"{len(made.tasks)} tasks are in {len(made.projects)} projects.")
    print(f"Pages for the participants: {args.folder / 'participant-1.html'}, ...")
    return 0


def _draw(args: argparse.Namespace) -> StudyPlan:
    models = [_model(text) for text in args.model]
    labels = [label for label, _, _ in models]
    if len(set(labels)) < len(labels):
        raise BadRequestError("Two models are called alike.", remedy="Give them other labels.")
    images = open_data_set(args.images, data=args.data)
    wanted = min(len(images), args.participants * args.objects)
    tasks = draw_tasks(
        participants=args.participants,
        objects_each=args.objects,
        objects=wanted,
        models=labels,
        seed=args.seed,
    )
    plan = StudyPlan(
        seed=args.seed,
        models=tuple(title_models(args.title, models, args.seed)),
        objects=choose_objects(images, wanted, args.folder, seed=args.seed),
        tasks=tasks,
    )
    write_plan(args.folder, plan)
    return plan


def _model(text: str) -> tuple[str, str, str]:
    """Label, source and backend from ``label=source@url``."""
    label, equals, rest = text.partition("=")
    source, at, url = rest.partition("@")
    if not (label and equals and source and at and url.startswith(("http://", "https://"))):
        raise BadRequestError(
            f"--model {text} names no model.",
            remedy="Write LABEL=SOURCE@URL, such as ours=default@http://127.0.0.1:9090.",
        )
    return label, source, url


def _report(args: argparse.Namespace) -> int:
    from lidiv_backend.learning.store import Store
    from lidiv_backend.server.settings import Settings
    from lidiv_backend.user_study.outcome import as_json, collect, figure_6, measure, render
    from lidiv_backend.user_study.project import read_projects

    plan, made = read_plan(args.folder), read_projects(args.folder)

    @cache
    def load(label: str) -> Method:
        return load_method(MethodSpec(label=label, source=plan.model(label).source))

    with closing(Store(Settings.from_environment().database)) as store:
        done, missing = collect(store, plan, made, args.folder)
    if not done:
        raise DataError(
            "No task of the study was done yet, or its clicks are in another database.",
            remedy="Give the LIDIV_STATE or LIDIV_DATABASE_URL of the backends.",
        )
    measured = list(tqdm(measure(done, args.folder, load), total=len(done), unit="task"))
    versions = {entry.task.model: version_of(load(entry.task.model)) for entry in done}
    for entry in done:
        if entry.model_version != versions[entry.task.model]:
            missing.append(
                f"{entry.task.key}: answered by {entry.model_version}, measured with "
                f"{versions[entry.task.model]}"
            )
    text = render(plan, measured, missing)
    (args.folder / "figure-6.png").write_bytes(figure_6(plan, measured))
    (args.folder / "study.md").write_text(text, encoding="utf-8")
    (args.folder / "outcome.json").write_text(
        as_json(plan, measured, missing, versions), encoding="utf-8"
    )
    sys.stdout.write(text)
    return 0
