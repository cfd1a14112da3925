"""Average recall as a table and as a plot."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from rich.table import Table

from ..visualize import new_figure, save_figure, style_axes
from .recall import CURVE_COUNTS, SIZES, Kind, Recall

PAPER_ROWS: Mapping[Kind, Mapping[str, tuple[float, float, float, float]]] = {
    "segm": {
        "DeepMask (VGG)": (0.126, 0.245, 0.331, 0.183),
        "DeepMask (ResNet)": (0.144, 0.258, 0.331, 0.194),
        "SharpMask": (0.156, 0.276, 0.355, 0.209),
    },
    "bbox": {"DeepMask (VGG)": (0.153, 0.313, 0.446, 0.233)},
}
"""AR at 10, 100 and 1000 and AUC on the first 5000 photos of COCO val2014: SharpMask, Table 3, and DeepMask (2015)."""
KIND_NAMES: Mapping[Kind, str] = {"segm": "masks", "bbox": "boxes"}


def recall_table(rows: Mapping[str, Recall], *, paper: bool = False) -> Table:
    """A table of `rows` (name -> recall) in per cent, with "-" where there is nothing to find.

    A figure that needs more proposals than any image has is marked. paper: adds the papers' own figures below,
    marked because they come from other data. Rows of both kinds (masks and boxes) may share a table, which then has
    no figures from the papers; their names must tell the kinds apart.
    """
    kinds = {recall.kind for recall in rows.values()}
    counts = sorted({count for recall in rows.values() for count in recall.ar})
    table = Table(title=f"Average recall of {' and '.join(KIND_NAMES[kind] for kind in sorted(kinds))} (%)")
    table.add_column("", no_wrap=True)
    for heading in (*(f"AR@{count}" for count in counts), "AUC", "AUC-S", "AUC-M", "AUC-L"):
        table.add_column(heading, justify="right", no_wrap=True)
    notes = []
    for name, recall in rows.items():
        cells = [(recall.ar[count]["all"] if count in recall.ar else math.nan, count) for count in counts]
        cells += [(recall.auc[size], CURVE_COUNTS[-1]) for size in SIZES]
        table.add_row(name, *(_percent(value) + "~" * (needed > recall.most) for value, needed in cells))
        if max(*counts, CURVE_COUNTS[-1]) > recall.most:
            notes.append(f"~ {name}: no image has more than {recall.most} proposals")
    if paper and len(kinds) == 1:
        notes.append("* the papers' figures on COCO val2014: other data, for orientation only")
        table.add_section()
        for name, (*published, auc) in PAPER_ROWS[kinds.pop()].items():
            by_count = dict(zip((10, 100, 1000), published, strict=True))
            values = [*(by_count.get(count, math.nan) for count in counts), auc, *[math.nan] * 3]
            table.add_row(f"{name}*", *map(_percent, values), style="dim")
    table.caption = "\n".join(notes)
    return table


def plot_recall(curves: Mapping[str, Recall], path: Path | str) -> None:
    """Write a PNG of AR against the number of proposals (logarithmic). Raises ImportError without matplotlib."""
    figure = new_figure(6.0, 4.2)
    axes = figure.add_subplot()
    for name, recall in curves.items():
        count, value = zip(*recall.curve, strict=True)
        axes.plot(count, 100 * np.array(value), marker="o", ms=3, linewidth=1.8, label=name)
    axes.set(xscale="log", xlabel="proposals per image", ylabel="average recall (%)")
    axes.set_xlim(1, CURVE_COUNTS[-1])
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    style_axes(axes)
    save_figure(figure, path)


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"
