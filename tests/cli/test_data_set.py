"""What ``sharpmask eval`` and ``train`` say of a data set: lines about boxes and links, photos that EXIF turns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sharpmask.cli import main

Capture = pytest.CaptureFixture[str]


def data_set(root: Path, orientation: int = 1, **more: Any) -> Path:
    """A folder with one photo and one object, and results.json with its mask."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    (root / "images").mkdir(parents=True)
    Image.new("RGB", (80, 60), (90, 90, 90)).save(root / "images" / "1.jpg", exif=exif)
    rle = {"size": [60, 80], "counts": [600, 30, 30, 30, 30, 30, 4050]}
    document = {
        "images": [{"id": 1, "file_name": "1.jpg", "height": 60, "width": 80}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": rle, **more}],
    }
    (root / "instances.json").write_text(json.dumps(document))
    (root / "results.json").write_text(json.dumps([{"image_id": 1, "score": 1, "bbox": [10, 0, 5, 30]}]))
    return root


def evaluate(root: Path, *arguments: str) -> int:
    results = str(root / "results.json")
    return main(["eval", "--dataset", str(root), "--results", results, "--out", str(root / "out"), *arguments])


def test_eval_says_what_differs_once(tmp_path: Path, capsys: Capture) -> None:
    assert evaluate(data_set(tmp_path, bbox=[50, 40, 9, 9])) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "differ from their masks" in line]
    assert len(lines) == 1
    assert "1 of 1; first: annotation 1: bbox [50, 40, 9, 9]" in lines[0]


@pytest.mark.parametrize("command", ["eval", "train"])
def test_exif_and_links_are_options(tmp_path: Path, capsys: Capture, command: str) -> None:
    root = data_set(tmp_path / "set", orientation=6)
    out = str(tmp_path / "out")
    start = ["eval"] if command == "eval" else ["train", "deepmask", "--trunk", "resnet18", "--steps", "1"]
    arguments = [*start, "--dataset", str(root), "--out", out]
    assert main(arguments) == 2
    assert "the annotated size fits 'stored' only" in capsys.readouterr().err
    assert main([*arguments, "--exif", "turned"]) == 2
    assert "image 1: " in capsys.readouterr().err
    (root / "images" / "1.jpg").replace(tmp_path / "1.jpg")
    (root / "images" / "1.jpg").symlink_to(tmp_path / "1.jpg")
    assert main([*arguments, "--exif", "stored", "--links", "refuse"]) == 2
    assert "symbolic link that leads out" in capsys.readouterr().err


def test_eval_goes_on_with_the_stored_pixels(tmp_path: Path) -> None:
    assert evaluate(data_set(tmp_path, orientation=3), "--exif", "stored") == 0
