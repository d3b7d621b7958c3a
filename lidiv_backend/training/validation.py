"""Looking at unseen images between training steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lidiv_backend.clicks import Click
from lidiv_backend.training.batches import Batch, load_draws
from lidiv_backend.training.draws import Draws
from lidiv_backend.training.pictures import Example
from lidiv_backend.training.simulation import centre_click
from lidiv_backend.training.step import Outcome

#: Clicks after which the masks are looked at.
_COUNTS = (1, 2, 3, 5)
#: Of so many images the proposals are kept, after one click and after three.
_EXAMPLES = 4
_EXAMPLE_COUNTS = (1, 3)

#: From clicks and previous masks of a batch to what the networks make of them.
Look = Callable[[list[list[Click]], Tensor | None], Outcome]


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What was seen.

    Parameters
    ----------
    iou
        Mean IoU of the best and of the selected mask, by the number of clicks.
    examples
        Some images with their proposals.
    """

    iou: dict[str, tuple[float, float]]
    examples: list[Example]

    def __str__(self) -> str:
        return ", ".join(f"{n}: {best:.3f}/{chosen:.3f}" for n, (best, chosen) in self.iou.items())


@torch.no_grad()
def validate(
    draws: Draws,
    prepare: Callable[[Batch], Look],
    *,
    score: Callable[[Tensor], Tensor] | None,
    batch_size: int,
    device: torch.device,
) -> Validation:
    """Click at the centre of the largest error of unseen images, and look at the masks.

    Parameters
    ----------
    draws
        One object of each image.
    prepare
        Computes everything of a batch that no click changes.
    score
        Scores from what g gave, or None without g.
    batch_size
        Images at a time.
    device
        Where to compute.

    Returns
    -------
    Validation
        The same for the same draws and networks: nothing is random.
    """
    pairs: dict[int, list[tuple[float, float]]] = {count: [] for count in _COUNTS}
    #: By image and number of clicks.
    kept: dict[tuple[int, int], Example] = {}
    done = 0
    for group in load_draws(draws, range(len(draws)), images=batch_size, workers=0):
        batch = Batch(group, device)
        look = prepare(batch)
        clicks: list[list[Click]] = [[] for _ in batch.objects]
        seen = np.zeros((len(batch), *batch.objects[0].shape), dtype=bool)
        previous: Tensor | None = None
        for count in range(1, max(_COUNTS) + 1):
            for index, wanted in enumerate(batch.objects):
                click = centre_click(wanted, seen[index], clicks[index], batch.ignored[index])
                if click is not None:
                    clicks[index].append(click)
            outcome = look(clicks, previous)
            chosen = outcome.selected
            previous = outcome.masks[torch.arange(len(chosen)), chosen].unsqueeze(1)
            seen = batch.hard(previous)[:, 0]
            if count in pairs:
                found = outcome.iou.gather(1, chosen[:, None]).squeeze(1)
                pairs[count] += zip(outcome.iou.amax(1).tolist(), found.tolist(), strict=True)
            if count in _EXAMPLE_COUNTS and done < _EXAMPLES:
                looked_at = _examples(batch, outcome, clicks, score, _EXAMPLES - done)
                kept |= {(done + index, count): example for index, example in enumerate(looked_at)}
        done += len(batch)
    return Validation(
        iou={
            str(count): (round(float(best), 4), round(float(selected), 4))
            for count, (best, selected) in (
                (count, np.mean(values, axis=0)) for count, values in pairs.items()
            )
        },
        examples=[kept[key] for key in sorted(kept)],
    )


def _examples(
    batch: Batch,
    outcome: Outcome,
    clicks: list[list[Click]],
    score: Callable[[Tensor], Tensor] | None,
    most: int,
) -> list[Example]:
    """What the networks make of the first images of a batch."""
    scores = None
    if score is not None and outcome.rated is not None:
        scores = score(outcome.rated.float()).tolist()
    masks = batch.hard(outcome.masks[:most])
    return [
        Example(
            rgb=batch.pictures[batch.owner_of[index]].permute(1, 2, 0).numpy(),
            truth=batch.objects[index],
            clicks=tuple(clicks[index]),
            masks=masks[index],
            scores=None if scores is None else tuple(scores[index]),
            iou=tuple(outcome.iou[index].tolist()),
            shown=int(outcome.selected[index]),
        )
        for index in range(len(masks))
    ]
