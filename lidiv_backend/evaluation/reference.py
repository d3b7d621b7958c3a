"""What the paper reports, and how methods are called and coloured everywhere.

A study gives its methods the labels below; then the report knows to which table they belong.
"""

from __future__ import annotations

import colorsys
import zlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How a method appears.

    Parameters
    ----------
    title
        For people.
    colour
        In all figures, ``#rrggbb``.
    """

    title: str
    colour: str


#: Label -> look, in the order of Table 2.
TABLE_2: dict[str, Look] = {
    "random-walk": Look(title="Random walk", colour="#8c8c8c"),
    "geodesic-matting": Look(title="Geodesic matting", colour="#b8860b"),
    "graph-cut": Look(title="Graph cut", colour="#2ca02c"),
    "euclidean-star-convexity": Look(title="Euclidean star convexity", colour="#17a2b8"),
    "geodesic-star-convexity": Look(title="Geodesic star convexity", colour="#1f4e9c"),
    "grabcut": Look(title="GrabCut (not in the paper)", colour="#8a5a44"),
    "dos": Look(title="DOS without graph cut", colour="#e377c2"),
    "dos-graph-cut": Look(title="DOS with graph cut", colour="#9467bd"),
    "paper": Look(title="Latent diversity, as in the paper", colour="#ff7f0e"),
    "default": Look(title="LiDiv default", colour="#d62728"),
}

#: Label -> title and the paper's clicks to 85 % on DAVIS, in the order of Table 3.
TABLE_3: dict[str, tuple[str, float]] = {
    "no-augmented-input": ("Without augmented input", 9.41),
    "cross-entropy": ("Without IoU loss (cross-entropy instead)", 7.18),
    "l1": ("Without IoU loss (L1 instead)", 6.93),
    "no-diversity": ("Without diversity (M = 1)", 7.26),
    "no-distance-transforms": ("Without distance transforms", 9.11),
    "no-click-input": ("Without click input", 9.67),
    "no-soft-constraints": ("Without soft constraints", 6.32),
    "rdl": ("Selection network replaced by ranked diversity", 6.13),
    "full": ("Full model", 5.95),
}

#: Label -> title, in the order of Table 4.
TABLE_4: dict[str, str] = {"unet": "U-net", "full": "Context aggregation network"}

#: Label -> what the paper reports in Table 4.
TABLE_4_PAPER: dict[str, str] = {
    "unet": "paper, DAVIS 6.25 / 9.96, GrabCut 3.22 / 4.81",
    "full": "paper, DAVIS 5.95 / 9.57, GrabCut 3.20 / 4.79",
}

#: Label -> M, for Figure 5; with M = 1 there is no diversity, and the full model has M = 6.
FIGURE_5: dict[str, int] = {
    "no-diversity": 1,
    **{f"m{count}": count for count in range(2, 6)},
    "full": 6,
    "m7": 7,
    "m8": 8,
}

#: Name of a data set here -> the paper's.
PAPER_SETS: dict[str, str] = {
    "GrabCut": "GrabCut",
    "DAVIS": "DAVIS",
    "SBD": "SBD",
    "sbd": "SBD",
    "COCO": "COCO",
    "COCO_MVal": "COCO",
    "COCO-dev": "COCO",
}

#: Label -> the paper's set -> clicks to 85 and 90 %, Table 2.
PAPER_CLICKS: dict[str, dict[str, tuple[float, float]]] = {
    label: dict(zip(("DAVIS", "GrabCut", "SBD", "COCO"), clicks, strict=True))
    for label, clicks in {
        "random-walk": ((16.71, 18.31), (11.36, 13.77), (12.22, 15.04), (13.62, 16.74)),
        "geodesic-matting": ((18.59, 19.50), (13.32, 14.57), (15.36, 17.60), (16.91, 18.63)),
        "graph-cut": ((15.13, 17.41), (7.98, 10.00), (13.60, 15.96), (15.23, 17.61)),
        "euclidean-star-convexity": (
            (15.41, 17.70),
            (7.24, 9.20),
            (12.21, 14.86),
            (14.04, 16.98),
        ),
        "geodesic-star-convexity": (
            (15.35, 17.52),
            (7.10, 9.12),
            (12.69, 15.31),
            (14.39, 16.89),
        ),
        "dos": ((12.52, 17.11), (8.02, 12.59), (14.30, 16.79), (13.99, 16.88)),
        "dos-graph-cut": ((9.03, 12.58), (5.08, 6.08), (9.22, 12.80), (9.07, 13.55)),
        "paper": ((5.95, 9.57), (3.20, 4.79), (7.41, 10.78), (7.86, 12.45)),
    }.items()
}


def look_of(label: str) -> Look:
    """Look of a method; one that is not listed always gets the same colour, too."""
    if label in TABLE_2:
        return TABLE_2[label]
    hue = zlib.crc32(label.encode()) / 2**32
    rgb = (round(255 * part) for part in colorsys.hls_to_rgb(hue, 0.38, 0.6))
    return Look(title=title_of(label), colour="#" + "".join(f"{part:02x}" for part in rgb))


def title_of(label: str) -> str:
    """What a method is called in tables; its label if it is not listed."""
    if label in TABLE_2:
        return TABLE_2[label].title
    if label in TABLE_3:
        return TABLE_3[label][0]
    if label in TABLE_4:
        return TABLE_4[label]
    if label in FIGURE_5:
        return f"M = {FIGURE_5[label]}"
    return label


def is_experiment(label: str) -> bool:
    """Whether a method belongs to Tables 3 and 4 or Figure 5 rather than to Table 2."""
    return label in TABLE_3 or label in TABLE_4 or label in FIGURE_5
