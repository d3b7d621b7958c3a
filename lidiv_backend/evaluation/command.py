"""The command `lidiv evaluate`: methods x data sets x protocols."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lidiv_backend.evaluation.datasets import known_data_sets, split_specs
from lidiv_backend.evaluation.methods import CLASSICAL, CLASSICAL_LONGEST_SIDE, MethodSpec
from lidiv_backend.evaluation.protocols import MAX_CLICKS, ClickProtocol, ProtocolSettings
from lidiv_backend.evaluation.runner import Plan, evaluate
from lidiv_backend.evaluation.tables import render_json, render_markdown, summaries_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `lidiv evaluate`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "\n".join(["data sets:", *(f"  {line}" for line in known_data_sets())])
    parser.add_argument(
        "--methods",
        required=True,
        help="separated by commas, each may be label=method: paper, default, a folder of weights, "
        f"module:callable, or {', '.join(CLASSICAL)}",
    )
    parser.add_argument("--data-sets", required=True, help="separated by commas, see below")
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
    parser.add_argument("--max-clicks", type=int, default=MAX_CLICKS)
    parser.add_argument(
        "--stop-at", type=float, default=0.95, help="the annotator is content with this IoU"
    )
    parser.add_argument(
        "--no-actions",
        action="store_true",
        help="leave out the annotator who may step to another proposal: quicker",
    )
    parser.add_argument(
        "--longest-side",
        type=int,
        default=CLASSICAL_LONGEST_SIDE,
        help="of the image for classical systems; 0 is full size",
    )


def run(args: argparse.Namespace) -> int:
    """Measure, print the tables, write them beside the results."""
    plan = Plan(
        methods=tuple(
            MethodSpec.parse(text, longest_side=args.longest_side or None)
            for text in args.methods.split(",")
        ),
        data_sets=tuple(split_specs(args.data_sets)),
        settings=tuple(
            ProtocolSettings(
                protocol=ClickProtocol(name),
                max_clicks=args.max_clicks,
                stop_at=args.stop_at,
                actions=not args.no_actions,
            )
            for name in args.protocol.split(",")
        ),
        seeds=tuple(range(args.seeds)),
        limit=args.limit,
        data=args.data,
        split=args.split,
    )
    outcome = evaluate(plan, args.out, jobs=args.jobs, resume=args.resume)
    summaries = summaries_of(outcome.results)
    text = render_markdown(summaries, outcome.problems)
    (args.out / "summary.md").write_text(text, encoding="utf-8")
    (args.out / "summary.json").write_text(
        render_json(summaries, outcome.problems), encoding="utf-8"
    )
    sys.stdout.write(text)
    return 1 if any(problem.defect for problem in outcome.problems) else 0
