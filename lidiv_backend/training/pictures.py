"""Pictures of a training run, so that a person can look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from lidiv_backend.clicks import Click
from lidiv_backend.drawing import contact_sheet, overlay
from lidiv_backend.training.checkpoints import RunLog

#: Longest side of a tile; smaller images are enlarged to it, so that captions fit.
_TILE = 260
_TRUTH_COLOUR = (64, 128, 255)


@dataclass(frozen=True, kw_only=True)
class Example:
    """What a model proposed for an unseen image.

    Parameters
    ----------
    rgb
        uint8 (H, W, 3).
    truth
        bool (H, W), the object that was meant.
    clicks
        The clicks so far.
    masks
        bool (M, H, W), the proposals in the order of the heads.
    scores
        Score of each, or None without g.
    iou
        Real IoU of each.
    shown
        Which head is shown to the annotator.
    """

    rgb: NDArray[np.uint8]
    truth: NDArray[np.bool_]
    clicks: tuple[Click, ...]
    masks: NDArray[np.bool_]
    scores: tuple[float, ...] | None
    iou: tuple[float, ...]
    shown: int


def draw_examples(path: Path, examples: Sequence[Example]) -> None:
    """Draw proposals for some images: a row each, first the clicks with what was meant.

    Parameters
    ----------
    path
        The PNG to write.
    examples
        At least one; all with the same number of masks.
    """
    tiles = []
    for example in examples:
        height, width = example.truth.shape
        factor = max(1.0, _TILE / max(height, width))
        size = (round(width * factor), round(height * factor))
        rgb = cv2.resize(example.rgb, size, interpolation=cv2.INTER_LINEAR).astype(np.uint8)
        clicks = [
            Click(
                x=(click.x + 0.5) * factor - 0.5,
                y=(click.y + 0.5) * factor - 0.5,
                positive=click.positive,
            )
            for click in example.clicks
        ]

        def enlarged(mask: NDArray[np.bool_], size: tuple[int, int] = size) -> NDArray[np.bool_]:
            full = cv2.resize(mask.view(np.uint8), size, interpolation=cv2.INTER_NEAREST)
            return full.astype(bool)

        count = len(clicks)
        caption = f"meant, after {count} click{'s' * (count > 1)}"
        truth = overlay(rgb, enlarged(example.truth), clicks, colour=_TRUTH_COLOUR)
        tiles.append((caption, truth))
        for head, mask in enumerate(example.masks):
            mark = "> " if head == example.shown else ""
            score = "" if example.scores is None else f"score {example.scores[head]:.2f}, "
            caption = f"{mark}{head}: {score}IoU {example.iou[head]:.2f}"
            tiles.append((caption, overlay(rgb, enlarged(mask), clicks)))
    sheet = contact_sheet(tiles, columns=1 + len(examples[0].masks), longest_side=_TILE)
    written, content = cv2.imencode(".png", sheet[:, :, ::-1])
    assert written  # noqa: S101 - PNG takes any image of 8 bits
    path.write_bytes(content.tobytes())


def draw_run(folder: Path) -> Path:
    """Draw the curves of a run.

    Parameters
    ----------
    folder
        Folder of the run, with ``log.jsonl``.

    Returns
    -------
    Path
        ``curves.png`` in it.
    """
    # A figure of its own, without pyplot: nothing global, so that any thread can draw.
    from matplotlib.figure import Figure

    rows = RunLog(folder).rows()
    figure = Figure(figsize=(15, 4.2), layout="constrained")
    axes = figure.subplots(1, 3)
    for phase in dict.fromkeys(row["phase"] for row in rows):
        steps = [row for row in rows if row["phase"] == phase and "loss" in row]
        seen = [row for row in rows if row["phase"] == phase and "validation" in row]
        if steps:
            x = [row["step"] for row in steps]
            axes[0].plot(x, [row["loss"] for row in steps], label=f"{phase}: loss")
            axes[0].plot(x, [row["best"] for row in steps], label=f"{phase}: IoU of the best")
            axes[0].plot(x, [row["selected"] for row in steps], label=f"{phase}: of the selected")
            for head in range(len(steps[0]["heads"])):
                share = [row["heads"][head] for row in steps]
                axes[2].plot(x, share, label=f"{phase}: head {head}")
        for clicks in seen[0]["validation"] if seen else ():
            x = [row["step"] for row in seen]
            line = axes[1].plot(
                x, [row["validation"][clicks][0] for row in seen], label=f"{phase}, {clicks}: best"
            )
            axes[1].plot(
                x,
                [row["validation"][clicks][1] for row in seen],
                linestyle="--",
                color=line[0].get_color(),
                label=f"{phase}, {clicks}: selected",
            )
    titles = ("Training", "Unseen images: IoU after clicks", "How often each head is the best")
    for axis, title in zip(axes, titles, strict=True):
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
        if axis.has_data():
            axis.legend(fontsize=7)
    path = folder / "curves.png"
    figure.savefig(path, dpi=110)
    return path
