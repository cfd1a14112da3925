"""The table and the plot."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from sharpmask.evaluation import average_recall, plot_recall, recall_table

from .cases import random_case


def test_table_and_plot(tmp_path: Path) -> None:
    truth, results = random_case(3)
    recall = average_recall(truth, results)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(recall_table({"mine": recall}, paper=True))
    text = console.export_text()
    assert f"{100 * recall.ar[100]['all']:.1f}" in text and f"{100 * recall.auc['large']:.1f}" in text
    assert "35.5" in text and "other data" in text and "masks" in text
    plot_recall({"mine": recall}, tmp_path / "recall.png")
    assert (tmp_path / "recall.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["recall.png"]
