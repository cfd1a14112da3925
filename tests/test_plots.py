from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image

from sharpmask.errors import DataError
from sharpmask.plots import plot_training


def test_plot_training(tmp_path: Path) -> None:
    rows = ["step,train_loss,lr,iou_mean,share_50,note"]
    rows += [f"{i},{1 / (i + 1)},0.1,{'' if i % 10 else i / 300},{'' if i % 10 else 0.5},x" for i in range(300)]
    log, picture = tmp_path / "log.csv", tmp_path / "curves.png"
    log.write_text("\n".join(rows) + "\n300,0.5")  # a last row cut short, as in a run still being written
    plot_training(log, picture)
    with Image.open(picture) as image:
        assert image.format == "PNG" and image.width > image.height
    (tmp_path / "losses.csv").write_text("step,loss\n1,2\n")
    plot_training(tmp_path / "losses.csv", picture)


@pytest.mark.parametrize("text", ["", "loss\n1\n", "step,loss\n", "step,loss\n1,nan\n", "step\n1\n", "step,lr\n1,2\n"])
def test_plot_training_refuses_other_tables(tmp_path: Path, text: str) -> None:
    log = tmp_path / "log.csv"
    log.write_text(text)
    with pytest.raises(DataError, match=r"log\.csv: expected"):
        plot_training(log, tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()
    with pytest.raises(DataError, match=r"nowhere\.csv"):
        plot_training(tmp_path / "nowhere.csv", tmp_path / "curves.png")


def test_plots_without_matplotlib_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    log = tmp_path / "log.csv"
    log.write_text("step,loss\n1,2\n")
    with pytest.raises(ImportError, match=r"sharpmask\[train\]"):
        plot_training(log, tmp_path / "curves.png")
