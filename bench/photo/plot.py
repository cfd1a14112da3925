"""A picture of the results: the time of a photo, on a logarithmic scale."""

from __future__ import annotations

from pathlib import Path

from .results import Measured, Results

SHADES = {"ours": ("black", ""), "before": ("white", "////"), "peer": ("0.75", ""), "other": ("white", "....")}
"""Fill and hatching by group: readable in black and white."""


def bars(results: Results) -> list[tuple[str, list[Measured]]]:
    """Of each model the contenders with the most threads and windows, the fastest first; then other systems."""
    models = list(dict.fromkeys(m.model for m in results.measured if m.group != "other"))
    groups = []
    for model in models:
        own = [m for m in results.measured if m.model == model]
        most = max((m.threads, m.count) for m in own)
        found = sorted((m for m in own if (m.threads, m.count) == most), key=lambda m: m.median)
        groups.append((f"{model}, N = {most[1]}", found))
    if others := [m for m in results.measured if m.group == "other"]:
        groups.append(("for orientation", sorted(others, key=lambda m: m.median)))
    return groups


def draw(results: Results, path: Path) -> None:
    """Writes the picture. Raises ``ImportError`` without matplotlib."""
    from matplotlib.figure import Figure

    groups = bars(results)
    sizes = [len(found) for _, found in groups]
    figure = Figure(figsize=(8, 0.28 * sum(sizes) + 0.7 * len(groups) + 0.6), layout="constrained")
    axes = figure.subplots(len(groups), 1, sharex=True, squeeze=False, height_ratios=sizes)[:, 0]
    for ax, (title, found) in zip(axes, groups, strict=True):
        for y, m in enumerate(found):
            fill, hatch = SHADES[m.group]
            ax.barh(y, m.median, color=fill, hatch=hatch, edgecolor="black", height=0.7)
            ax.annotate(f" {m.median:.2f} s", (m.median, y), va="center", fontsize=8)
        ax.set_yticks(range(len(found)), [m.name for m in found], fontsize=8)
        ax.invert_yaxis()
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter("{x:g}")
        ax.set_title(title, loc="left", fontsize=9)
        ax.spines[["top", "right"]].set_visible(False)
    least, most = (f(m.median for _, found in groups for m in found) for f in (min, max))
    axes[0].set_xlim(least / 2, most * 2)
    height, width = results.size
    axes[-1].set_xlabel(f"seconds for a photo of {height}x{width}, logarithmic", fontsize=8)
    figure.savefig(path, dpi=100, metadata={"Software": None})
