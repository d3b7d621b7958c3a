"""What ``torchrun`` runs in `test_command`: `lidiv train` twice, telling what each process did."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from lidiv_backend.cli import main
from lidiv_backend.training.step import TrainingStep
from lidiv_backend.training.trainer import Trainer


def run() -> int:
    """Train, and write which examples this process saw and with which weights it ended."""
    torch.set_num_threads(1)
    told: dict[str, Any] = {"examples": [], "weights": [], "rounds": []}
    one_step, checkpoint, show = Trainer._one_step, Trainer._checkpoint, TrainingStep.show

    def counted(self: TrainingStep, *batch: Any) -> torch.Tensor:
        told["rounds"][-1] += 1
        return show(self, *batch)

    def watched(self: Trainer, step: Any, wrapped: Any, draws: Any) -> Any:
        told["wrapped"] = type(wrapped).__name__
        told["rounds"].append(0)
        told["examples"] += [int(draw["rgb"].long().sum()) for draw in draws]
        return one_step(self, step, wrapped, draws)

    def looked_at(self: Trainer, step: Any, average: Any) -> None:
        state = {**step.state_dict(), **average.module.state_dict(prefix="average.")}
        told["weights"] = [float(tensor.double().sum()) for tensor in state.values()]
        checkpoint(self, step, average)

    TrainingStep.show = counted  # type: ignore[method-assign]
    Trainer._one_step = watched  # type: ignore[method-assign]
    Trainer._checkpoint = looked_at  # type: ignore[method-assign]
    where, *words = sys.argv[1:]
    # Stopped after one step and resumed: both processes have to agree on when.
    status = main([*words, "--minutes", "0"]) or main([*words, "--resume", "--minutes", "10"])
    path = Path(where) / f"{os.environ['RANK']}.json"
    path.write_text(json.dumps(told))
    return status


if __name__ == "__main__":
    sys.exit(run())
