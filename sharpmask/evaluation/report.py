"""Average recall as a table and as a plot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from rich.table import Table
from rich.text import Text

from ..errors import counted
from ..plots import new_figure, save_figure, style_axes
from .bootstrap import FEWEST_OBJECTS, FEWEST_PHOTOS, Figures, Interval
from .matching import SIZES, Kind
from .recall import CURVE_COUNTS, Recall

PAPER_ROWS: Mapping[Kind, Mapping[str, tuple[float, float, float, float]]] = {
    "segm": {
        "DeepMask (VGG)": (0.126, 0.245, 0.331, 0.183),
        "DeepMask (ResNet)": (0.144, 0.258, 0.331, 0.194),
        "SharpMask": (0.156, 0.276, 0.355, 0.209),
    },
    "bbox": {"DeepMask (VGG)": (0.153, 0.313, 0.446, 0.233)},
}
"""AR at 10, 100 and 1000 and AUC on the first 5000 photos of COCO val2014: SharpMask, Table 3, and DeepMask (2015)."""
LONGEST_NAME = 60
"""Characters of a name in a table."""
MOST_GROUPS = 50
"""Rows of a table of groups: photos may be of thousands of sources."""
KIND_NAMES: Mapping[Kind, str] = {"segm": "masks", "bbox": "boxes"}


def recall_table(
    rows: Mapping[str, Recall], *, paper: bool = False, figures: Mapping[str, Figures] | None = None
) -> Table:
    """A table of `rows` (name -> recall) in per cent, with "-" where there is nothing to find.

    A figure that needs more proposals than any image has is marked. paper: adds the papers' own figures below,
    marked because they come from other data. Rows of both kinds (masks and boxes) may share a table, which then has
    no figures from the papers; their names must tell the kinds apart. figures: of the same rows and numbers of
    proposals, whose intervals are written below the row.
    """
    figures = figures or {}
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
        table.add_row(_text(name), *(_marked(value, needed, recall.most) for value, needed in cells))
        ends = _ends(figures.get(name), counts)
        if ends:
            table.add_row("  95 % interval", *ends, style="dim")
        if max(*counts, CURVE_COUNTS[-1]) > recall.most:
            notes.append(f"~ {name}: no image has more than {counted(recall.most, 'proposal')}")
    if figures:
        notes.append(_counted(next(iter(figures.values()))))
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


def breakdown_table(title: str, groups: Mapping[str, Figures], most: int) -> Table:
    """A table of `groups` (name -> figures) in per cent, as of `break_down`. most: as of `Recall`.

    The interval is that of the number of proposals in the middle. Groups of too few objects or photos are marked. Of
    many groups the table has the first `MOST_GROUPS`, and a line says how many are left out.
    """
    counts = sorted(next(iter(groups.values())).ar) if groups else []
    middle = counts[len(counts) // 2] if counts else None
    table = Table(title=Text.assemble("Average recall by ", _text(title), " (%)"))
    table.add_column("", no_wrap=True)
    for heading in ("objects", "photos"):
        table.add_column(heading, justify="right", no_wrap=True)
    for count in counts:
        table.add_column(f"AR@{count}", justify="right", no_wrap=True)
        if count == middle:
            table.add_column("95 %", justify="right", no_wrap=True, style="dim")
    table.add_column("AUC", justify="right", no_wrap=True)
    shown = dict(islice(groups.items(), MOST_GROUPS))
    for name, found in shown.items():
        cells: list[Text | str] = [_text(name).append(" ?" * found.few), str(found.objects), str(found.photos)]
        for count in counts:
            cells.append(_marked(found.ar[count], count, most))
            if count == middle:
                cells.append(_interval(found.ar_interval[count]) if found.ar_interval else "-")
        table.add_row(*cells, _marked(found.auc, CURVE_COUNTS[-1], most))
    notes = [f"~ no image has more than {counted(most, 'proposal')}"] if counts and max(counts) > most else []
    if len(shown) < len(groups):
        notes.append(f"the first {len(shown)} of {len(groups)} groups")
    if any(found.few for found in shown.values()):
        notes.append(f"? fewer than {FEWEST_OBJECTS} objects or {FEWEST_PHOTOS} photos: too few to rely on")
    table.caption = "\n".join(notes)
    return table


def difference_table(rows: Mapping[str, Figures]) -> Table:
    """A table of differences (name -> figures), as of `difference`, in points of per cent."""
    counts = sorted({count for found in rows.values() for count in found.ar})
    table = Table(title="Differences on the same photos (points)")
    table.add_column("", no_wrap=True)
    for heading in (*(f"AR@{count}" for count in counts), "AUC"):
        table.add_column(heading, justify="right", no_wrap=True)
    sure = False
    for name, found in rows.items():
        values, ends = [*(found.ar[count] for count in counts), found.auc], _intervals(found, counts)
        clear = [end is not None and not end[0] <= 0 <= end[1] for end in ends]
        sure |= any(clear)
        cells = [_percent(value, "+") + "*" * marked for value, marked in zip(values, clear, strict=True)]
        table.add_row(_text(name), *cells)
        if any(ends):
            table.add_row("  95 % interval", *(_interval(end, "+") for end in ends if end), style="dim")
    notes = [_counted(found) for found in list(rows.values())[:1]]
    if sure:
        notes.append("* the interval excludes 0, so chance in the choice of photos is unlikely to explain it")
    table.caption = "\n".join(notes)
    return table


def _counted(figures: Figures) -> str:
    """How much is measured, and why there may be no intervals."""
    what = f"{counted(figures.objects, 'object')} in {counted(figures.photos, 'photo')}"
    few = figures.photos < FEWEST_PHOTOS
    return f"{what}: fewer than {FEWEST_PHOTOS} photos have no intervals" if few else what


def _intervals(figures: Figures | None, counts: Sequence[int]) -> list[Interval | None]:
    if figures is None or figures.ar_interval is None:
        return [None] * (len(counts) + 1)
    return [*(figures.ar_interval[count] for count in counts), figures.auc_interval]


def _ends(figures: Figures | None, counts: Sequence[int]) -> list[str]:
    """Intervals as cells; none if there are none."""
    return [_interval(ends) for ends in _intervals(figures, counts) if ends]


def _interval(ends: Interval, sign: str = "") -> str:
    return " to ".join(_percent(end, sign) for end in ends) if sign else "-".join(_percent(end) for end in ends)


def _percent(value: float, sign: str = "") -> str:
    return "-" if math.isnan(value) else f"{100 * value:{sign}.1f}"


def _marked(value: float, needed: int, most: int) -> str:
    """A figure as a cell, with "~" if it needs more proposals than any image has."""
    return _percent(value) + "~" * (needed > most and not math.isnan(value))


def _text(name: str) -> Text:
    """A name as it is, because it may look like markup; short, and without what moves a terminal's cursor."""
    clean = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name)
    return Text(clean if len(clean) <= LONGEST_NAME else f"{clean[: LONGEST_NAME - 1]}…")
