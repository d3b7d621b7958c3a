"""The command `lidiv reproduce`: every table and figure of the paper, trained and measured."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lidiv_backend.errors import LidivError
from lidiv_backend.evaluation.datasets import split_specs
from lidiv_backend.evaluation.methods import CLASSICAL, CLASSICAL_LONGEST_SIDE, MethodSpec
from lidiv_backend.evaluation.protocols import ClickProtocol, ProtocolSettings
from lidiv_backend.evaluation.report import write_report
from lidiv_backend.evaluation.results import read_results
from lidiv_backend.evaluation.runner import Plan, evaluate
from lidiv_backend.evaluation.side_by_side import SideBySide
from lidiv_backend.evaluation.tables import write_summaries
from lidiv_backend.evaluation.variants import FULL, HALF_DAY, QUICK, Budget, choose_variants
from lidiv_backend.model import weights_folder
from lidiv_backend.training.command import default_data
from lidiv_backend.training.data import open_image_set

#: Systems of Table 2 that need no training; OpenCV's GrabCut is not in the paper.
_CLASSICAL = tuple(label for label in CLASSICAL if label != "grabcut")
_PRESETS = ("paper", "default")


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How thoroughly everything is done.

    Parameters
    ----------
    budget
        Of every trained variant.
    classical_side
        Longest side of the image for classical systems and graph cuts; None for its full size.
    limit
        Images of each set apart from GrabCut; None for all.
    classical_seeds, seeds, variant_seeds
        Repetitions for classical systems, for the presets and DOS, and for the variants.
    """

    budget: Budget
    classical_side: int | None
    limit: int | None
    classical_seeds: int
    seeds: int
    variant_seeds: int


QUICK_SCALE = Scale(
    budget=QUICK,
    classical_side=CLASSICAL_LONGEST_SIDE,
    limit=40,
    classical_seeds=1,
    seeds=3,
    variant_seeds=1,
)
HALF_DAY_SCALE = replace(QUICK_SCALE, budget=HALF_DAY)
FULL_SCALE = Scale(
    budget=FULL,
    classical_side=None,
    limit=None,
    classical_seeds=3,
    seeds=3,
    variant_seeds=3,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `lidiv reproduce`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        "Variants are trained side by side, each with the same number of steps on the same\n"
        f"examples. --quick: {QUICK}.\nWithout: {HALF_DAY}.\n--full: {FULL}.\n"
        "What is done already is left out when the command is repeated."
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for weights and results")
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--quick",
        action="store_true",
        help="smaller in everything: for two to three hours on two cores",
    )
    size.add_argument("--full", action="store_true", help="at full size: days on a GPU")
    parser.add_argument("--train-data", help="shards:$LIDIV_DATA/train if not given")
    parser.add_argument("--data-sets", default="grabcut,coco-dev", help="separated by commas")
    parser.add_argument("--data", type=Path, help="where benchmarks lie; default: LIDIV_DATA")
    parser.add_argument("--variants", help="only these, separated by commas")
    parser.add_argument("--steps", type=int, help="of f, instead of the budget's; g gets half")
    parser.add_argument("--limit", type=int, help="images of each set apart from GrabCut")
    parser.add_argument("--jobs", type=int, default=1, help="processes that measure")
    parser.add_argument("--workers", type=int, default=1, help="processes that read for training")
    parser.add_argument(
        "--minutes", type=float, help="stop training after so many minutes, resumably"
    )
    parser.add_argument(
        "--only", choices=["train", "table-2", "variants", "report"], help="one part of it"
    )
    parser.add_argument(
        "--no-photographs",
        action="store_true",
        help="a page without pictures of the data sets, which may not be ours to publish",
    )


def run(args: argparse.Namespace) -> int:
    """Run `lidiv reproduce`."""
    scale = _scale(args)
    variants = choose_variants(None if args.variants is None else args.variants.split(","))
    if args.only in (None, "train"):
        trainer = SideBySide(
            variants,
            scale.budget,
            open_image_set(args.train_data or default_data(), split="train"),
            args.out,
            workers=args.workers,
        )
        print(f"{len(variants)} variants, each: {scale.budget}")
        if not trainer.run(minutes=args.minutes):
            print("training was stopped: the same command goes on")
            return 130
    if args.only == "train":
        return 0
    stages: list[Plan] = []
    sets = split_specs(args.data_sets)
    if args.only in (None, "table-2"):
        stages += table_2_plans(scale, args.out, sets, args.data)
    if args.only in (None, "variants"):
        labels = [v.label for v in variants if v.label != "dos"]
        stages += variant_plans(scale, args.out, labels, sets, args.data)
    for plan in stages:
        print(f"\n{', '.join(spec.label for spec in plan.methods)} on {', '.join(plan.data_sets)}")
        evaluate(plan, args.out, jobs=args.jobs, resume=True)
    contents = read_results(args.out)
    sys.stdout.write(write_summaries(args.out, contents))
    page = write_report(args.out, photographs=not args.no_photographs)
    sys.stdout.write(f"\nThe page is {page}\n")
    return 1 if any(problem.defect for problem in contents.problems) else 0


def _scale(args: argparse.Namespace) -> Scale:
    scale = FULL_SCALE if args.full else QUICK_SCALE if args.quick else HALF_DAY_SCALE
    if args.steps is not None:
        steps = max(1, args.steps)
        budget = replace(scale.budget, steps=steps, selection_steps=max(1, steps // 2))
        scale = replace(scale, budget=budget)
    if args.limit is not None:
        scale = replace(scale, limit=args.limit)
    return scale


def table_2_plans(
    scale: Scale, folder: Path, data_sets: Sequence[str], data: Path | None
) -> list[Plan]:
    """What is to be measured for Table 2 and Figure 3.

    Parameters
    ----------
    scale
        How thoroughly.
    folder
        With the trained DOS, if it was trained.
    data_sets, data
        As in `Plan`.
    """
    classical = [
        MethodSpec(label=label, source=label, longest_side=scale.classical_side)
        for label in _CLASSICAL
    ]
    ours: list[MethodSpec] = []
    refined: list[MethodSpec] = []
    dos = folder / "weights" / "dos"
    if (dos / "model.json").is_file():
        ours.append(MethodSpec(label="dos", source=str(dos)))
        refined.append(
            MethodSpec(
                label="dos-graph-cut",
                source=f"{dos}+graph-cut",
                longest_side=scale.classical_side,
            )
        )
    for label in _PRESETS:
        try:
            source = str(weights_folder(label))
        except LidivError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        ours.append(MethodSpec(label=label, source=source))
    # The presets show what alternatives are worth; a method with one proposal has none.
    return [
        *_plans(classical, data_sets, data, scale, seeds=scale.classical_seeds),
        *_plans(ours, data_sets, data, scale, seeds=scale.seeds, actions=True),
        *_plans(refined, data_sets, data, scale, seeds=scale.classical_seeds),
    ]


def variant_plans(
    scale: Scale,
    folder: Path,
    labels: Sequence[str],
    data_sets: Sequence[str],
    data: Path | None,
) -> list[Plan]:
    """What is to be measured for Tables 3 and 4 and Figure 5; see `table_2_plans`."""
    trained = [
        MethodSpec(label=label, source=str(folder / "weights" / label))
        for label in labels
        if (folder / "weights" / label / "model.json").is_file()
    ]
    return list(_plans(trained, data_sets, data, scale, seeds=scale.variant_seeds))


def _plans(
    methods: Sequence[MethodSpec],
    data_sets: Sequence[str],
    data: Path | None,
    scale: Scale,
    *,
    seeds: int,
    actions: bool = False,
) -> Iterator[Plan]:
    if not methods:
        return
    settings = ProtocolSettings(protocol=ClickProtocol.SAMPLED, actions=actions)
    for data_set in data_sets:
        yield Plan(
            methods=tuple(methods),
            data_sets=(data_set,),
            settings=(settings,),
            seeds=tuple(range(seeds)),
            limit=None if data_set.partition(":")[0] == "grabcut" else scale.limit,
            data=data,
        )
