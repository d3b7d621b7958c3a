"""Pictures of a training run, so that a person can look."""

from __future__ import annotations

import json
from pathlib import Path


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
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.2), layout="constrained")
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
    plt.close(figure)
    return path
