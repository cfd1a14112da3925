"""What a run shows of itself: log.csv, TensorBoard events, a plot of the curves and a progress bar."""

from __future__ import annotations

import csv
import io
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..errors import DataError
from ..files import write_text
from ..plots import plot_training

LOG, CURVES = "log.csv", "curves.png"


class Log:
    """log.csv and, where TensorBoard is installed, its events. A run resumed at ``step`` drops later rows."""

    def __init__(self, folder: Path, step: int) -> None:
        self.folder = folder
        self.rows: list[dict[str, str]] = []
        if step and (folder / LOG).exists():
            self.rows = [row for row in _read_rows(folder / LOG) if int(row["step"]) <= step]
        self.board = self._board(step)

    def _board(self, step: int) -> Any:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:  # It comes with the extra: pip install 'sharpmask[train]'.
            return None
        return SummaryWriter(str(self.folder / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, row: dict[str, float]) -> None:
        """Add a row. The file is written anew, because a row may bring new columns."""
        self.rows.append({"step": str(step), **{k: repr(v) for k, v in row.items()}})
        names = list(dict.fromkeys(name for r in self.rows for name in r))
        text = io.StringIO()
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.folder / LOG, text.getvalue())
        if self.board is not None:
            for name, value in row.items():
                self.board.add_scalar(name, value, step)

    def close(self) -> None:
        """End the events and, where matplotlib is installed, draw the curves, if there are any."""
        if self.board is not None:
            self.board.close()
        # No step may have had an example to learn from, and the log of a finished run may be gone.
        if any(set(row) - {"step", "lr"} for row in self.rows):
            with suppress(ImportError):  # matplotlib comes with the same extra.
                plot_training(self.folder / LOG, self.folder / CURVES)


def _read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a log. Raises ``DataError`` for a file that is none."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if all(row["step"].isdecimal() and None not in row and None not in row.values() for row in rows):
            return rows
    except (csv.Error, KeyError, AttributeError, ValueError):  # ValueError: bytes that are no text
        pass
    raise DataError(f"{path}: not the log of a run; move it away to go on without it")


def make_progress(console: Console) -> Progress:
    """A progress bar over steps. Its tasks have a field ``loss``, a text."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
        console=console,
    )
