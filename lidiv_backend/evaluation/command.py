"""The command `lidiv evaluate`: methods x data sets x protocols."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from lidiv_backend.errors import BadRequestError, WeightsError
from lidiv_backend.evaluation.datasets import known_data_sets, split_specs
from lidiv_backend.evaluation.measures import Summary
from lidiv_backend.evaluation.methods import CLASSICAL, CLASSICAL_LONGEST_SIDE, MethodSpec
from lidiv_backend.evaluation.protocols import ClickProtocol, ProtocolSettings
from lidiv_backend.evaluation.report import write_report
from lidiv_backend.evaluation.results import Contents, read_results
from lidiv_backend.evaluation.runner import Plan, evaluate
from lidiv_backend.evaluation.tables import (
    render_markdown,
    render_summary,
    summaries_of,
    write_summaries,
)
from lidiv_backend.measured import insert_measured
from lidiv_backend.model import record_results, weights_folder
from lidiv_backend.training.card import write_card


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `lidiv evaluate`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "\n".join(["data sets:", *(f"  {line}" for line in known_data_sets())])
    parser.add_argument(
        "--methods",
        help="separated by commas, each may be label=method: paper, default, a folder of weights, "
        f"module:callable, or {', '.join(CLASSICAL)}; +graph-cut behind one refines its mask",
    )
    parser.add_argument("--data-sets", help="separated by commas, see below")
    parser.add_argument(
        "--protocol",
        default="centre",
        help="centre (of the largest error) or sampled (the paper's, Eq. 8), or both with a comma",
    )
    parser.add_argument("--seeds", type=int, default=3, help="of the sampled protocol")
    parser.add_argument("--limit", type=int, help="at most so many images of each set")
    parser.add_argument("--jobs", type=int, default=1, help="processes, over images")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--resume", action="store_true", help="add to what the folder holds")
    parser.add_argument("--data", type=Path, help="where benchmarks lie; default: LIDIV_DATA")
    parser.add_argument("--split", help="part of the sets that have parts, such as val")
    parser.add_argument(
        "--stop-at",
        type=float,
        default=0.95,
        help="the annotator is content with this IoU; what lies above is not counted",
    )
    parser.add_argument(
        "--no-actions",
        action="store_true",
        help="leave out the annotator who may step to another proposal: quicker",
    )
    parser.add_argument(
        "--report",
        action="store_true",
        help="write a page with tables, figures and pictures; without --methods and --data-sets, "
        "of what the folder holds",
    )
    parser.add_argument(
        "--no-photographs",
        action="store_true",
        help="a page without pictures of the data sets, which may not be ours to publish",
    )
    parser.add_argument(
        "--record",
        action="store_true",
        help="write what folders of weights scored into their model.json and model card",
    )
    parser.add_argument(
        "--insert",
        type=Path,
        metavar="PAGE",
        help="put the tables into this page's section 'clicks'",
    )
    parser.add_argument(
        "--longest-side",
        type=int,
        default=CLASSICAL_LONGEST_SIDE,
        help="of the image for classical systems; 0 is full size",
    )


def run(args: argparse.Namespace) -> int:
    """Measure, print the tables, write them beside the results."""
    plan: Plan | None
    if args.methods is None and args.data_sets is None and args.report:
        plan, contents = None, read_results(args.out)
    else:
        plan = _plan(args)
        contents = evaluate(plan, args.out, jobs=args.jobs, resume=args.resume)
    text = write_summaries(args.out, contents)
    sys.stdout.write(text)
    if args.report:
        page = write_report(args.out, photographs=not args.no_photographs)
        sys.stdout.write(f"\nThe page is {page}\n")
    if plan is not None and (args.record or args.insert):
        own, command = _own(plan, contents), _words(args, plan)
        if args.record:
            _record(plan, own, command)
        if args.insert:
            table = render_markdown(own, contents.problems)
            insert_measured(args.insert, "clicks", table, command=command)
    return 1 if any(problem.defect for problem in contents.problems) else 0


def _plan(args: argparse.Namespace) -> Plan:
    if not (args.methods and args.data_sets):
        raise BadRequestError(
            "What is to be measured?", remedy="Give --methods and --data-sets, or --report alone."
        )
    known = [protocol.value for protocol in ClickProtocol]
    protocols = args.protocol.split(",")
    if not set(protocols) <= set(known):
        raise BadRequestError(
            f"There is no protocol {args.protocol!r}.", remedy=f"Known are: {', '.join(known)}."
        )
    if args.seeds < 1 or not 0 < args.stop_at <= 1:
        raise BadRequestError(
            f"{args.seeds} seeds and an IoU of {args.stop_at} cannot be.",
            remedy="Give at least one seed and an IoU of at most 1.",
        )
    return Plan(
        methods=tuple(
            MethodSpec.parse(text, longest_side=args.longest_side or None)
            for text in args.methods.split(",")
        ),
        data_sets=tuple(split_specs(args.data_sets)),
        settings=tuple(
            ProtocolSettings(
                protocol=ClickProtocol(name), stop_at=args.stop_at, actions=not args.no_actions
            )
            for name in protocols
        ),
        seeds=tuple(range(args.seeds)),
        limit=args.limit,
        data=args.data,
        split=args.split,
    )


def _words(args: argparse.Namespace, plan: Plan) -> str:
    """The command as it can be repeated, without anybody's own folders."""
    words = ["lidiv evaluate --methods", ",".join(spec.label for spec in plan.methods)]
    sets = [re.sub(r"(?<=[:,])[^,?]*/", "", spec) for spec in plan.data_sets]
    words += ["--data-sets", ",".join(sets), "--protocol", args.protocol]
    if any(s.protocol is ClickProtocol.SAMPLED for s in plan.settings):
        words += ["--seeds", str(args.seeds)]
    if args.limit is not None:
        words += ["--limit", str(args.limit)]
    usual = ProtocolSettings()
    if any(settings.stop_at != usual.stop_at for settings in plan.settings):
        words += ["--stop-at", f"{args.stop_at:g}"]
    if args.no_actions:
        words.append("--no-actions")
    return " ".join(words)


def _own(plan: Plan, contents: Contents) -> list[Summary]:
    """What the plan measured; the folder may hold what other commands did."""
    methods = {spec.label for spec in plan.methods}
    measured = {entry.name for entry in contents.data_sets if entry.spec in plan.data_sets}
    protocols = {settings.protocol.value for settings in plan.settings}
    return summaries_of(
        [
            result
            for result in contents.latest()
            if result.key.method in methods
            and result.key.data_set in measured
            and result.key.protocol in protocols
        ]
    )


def _record(plan: Plan, summaries: Sequence[Summary], command: str) -> None:
    """Write what weights scored into their folders, and their cards anew."""
    for spec in plan.methods:
        try:
            folder = weights_folder(spec.source)
        except WeightsError:
            continue
        own = [summary for summary in summaries if summary.method == spec.label]
        record_results(
            folder,
            {
                f"Clicks on {summary.data_set}, protocol {summary.protocol}": {
                    "command": command,
                    "text": render_summary(summary),
                }
                for summary in own
            },
        )
        write_card(folder)
