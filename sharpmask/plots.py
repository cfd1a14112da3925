"""Plots by matplotlib: the look that all share, and the curves of a training log."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .data.containers import DRAWN
from .errors import DataError
from .files import atomic
from .visualize import PICTURE_FORMATS, format_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLOT_FORMATS = PICTURE_FORMATS | {".pdf": "pdf", ".svg": "svg"}


def new_figure(width: float, height: float) -> Figure:
    """An empty matplotlib figure of `width` x `height` inches; it needs no display and has no global state.

    Raises ImportError without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'sharpmask[train]'") from error
    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def style_axes(axes: Any) -> None:
    """The look shared by all plots: light grid, no box, a legend without a frame."""
    axes.grid(True, alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)


def save_figure(figure: Figure, path: Path | str) -> None:
    """Write a figure as PNG, JPEG, PDF or SVG, by the path's suffix, as :func:`sharpmask.visualize.save_picture`."""
    kind = format_of(path, PLOT_FORMATS)
    marks: dict[str, Any] = {
        "png": {"metadata": {"Software": DRAWN}},
        "jpeg": {"pil_kwargs": {"comment": DRAWN}},
    }
    with atomic(Path(path)) as part:
        figure.savefig(part, format=kind, **marks.get(kind, {}))


def plot_training(csv_path: Path | str, png_path: Path | str) -> None:
    """Write a PNG of a training log's curves: losses in one panel, other metrics (IoU, accuracy) in the other.

    The CSV has a `step` column and any number of metric columns; a cell is empty where a step has no such metric.
    Learning rates and times are left out. Curves of many points are drawn faintly, with a running mean on top.
    Raises DataError for a file that is missing or not such a table, ImportError without matplotlib.
    """
    curves = _read_curves(Path(csv_path))
    losses = {name: curve for name, curve in curves.items() if "loss" in name.lower()}
    others = {name: curve for name, curve in curves.items() if name not in losses and not _is_bookkeeping(name)}
    groups = [(title, group) for title, group in (("loss", losses), ("validation", others)) if group]
    if not groups:
        raise DataError(f"{csv_path}: expected at least one metric column with numbers beside 'step'")
    figure = new_figure(6.0 * len(groups), 4.0)
    for place, (title, group) in enumerate(groups):
        axes = figure.add_subplot(1, len(groups), place + 1)
        for index, (name, (steps, values)) in enumerate(group.items()):
            _draw_curve(axes, name, steps, values, f"C{index}")
        axes.set(xlabel="step", ylabel=title)
        if title == "validation" and all(np.min(v) >= 0 and np.max(v) <= 1 for _, v in group.values()):
            axes.set_ylim(0, 1)
        style_axes(axes)
    save_figure(figure, png_path)


def _read_curves(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Column name -> (steps, values) over the rows where that column holds a finite number."""
    points: dict[str, list[tuple[float, float]]] = {}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if "step" not in (reader.fieldnames or ()):
                raise DataError(f"{path}: expected a column 'step', got {reader.fieldnames or 'no columns'}")
            for row in reader:
                _add_row(points, row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a readable CSV file ({error})") from error
    return {name: (np.array(rows)[:, 0], np.array(rows)[:, 1]) for name, rows in points.items()}


def _add_row(points: dict[str, list[tuple[float, float]]], row: Mapping[str, Any]) -> None:
    step = _number(row["step"])
    for name, cell in row.items():
        value = _number(cell)
        if name and name != "step" and math.isfinite(step) and math.isfinite(value):
            points.setdefault(name, []).append((step, value))


def _number(cell: object) -> float:
    try:
        return float(str(cell))
    except ValueError:
        return math.nan


def _is_bookkeeping(name: str) -> bool:
    words = name.lower().replace("/", "_").split("_")
    return any(word in ("lr", "epoch", "time", "seconds", "rate", "eta") for word in words)


def _draw_curve(axes: Any, name: str, steps: np.ndarray, values: np.ndarray, colour: str) -> None:
    window = len(values) // 50
    if window < 2:
        marker = "o" if len(values) < 30 else ""
        axes.plot(steps, values, color=colour, linewidth=1.6, marker=marker, ms=3, label=name)
        return
    axes.plot(steps, values, color=colour, linewidth=0.6, alpha=0.3)
    mean = np.convolve(values, np.ones(window) / window, mode="valid")
    centre = (window - 1) // 2
    axes.plot(steps[centre : centre + len(mean)], mean, color=colour, linewidth=1.6, label=name)
