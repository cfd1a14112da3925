"""The formats of ``propose``: what each writes, and how they go with --resume."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import supervision as sv
from PIL import Image
from pycocotools import mask as coco_mask

from sharpmask import packages
from sharpmask.cli import formats, main
from sharpmask.data.images import load_image


@pytest.fixture
def photos(tmp_path: Path, synth: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for name in ("000001", "000002"):
        Image.fromarray(load_image(synth / "images" / f"{name}.png")).save(tmp_path / "photos" / f"{name}.png")
    return tmp_path / "photos"


def propose(photos: Path, checkpoint: Path, out: Path, names: str, *more: str) -> int:
    return main([
        "propose", str(photos), "--checkpoint", str(checkpoint), "--out", str(out), "--top-n", "8", "--no-overlay",
        "--format", names, *more,
    ])  # fmt: skip


def masks_of(out: Path) -> dict[int, list[np.ndarray]]:
    """By image_id, of proposals.json."""
    found: dict[int, list[np.ndarray]] = {}
    for entry in json.loads((out / "proposals.json").read_text()):
        found.setdefault(entry["image_id"], []).append(coco_mask.decode(entry["segmentation"]) > 0)
    return found


def test_every_format_has_the_same_masks(photos: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert propose(photos, tiny_checkpoint, out, "coco,labelme, yolo,png,parquet") == 0
    expected = masks_of(out)
    assert len(expected) == 2

    dataset = sv.DetectionDataset.from_labelme(str(photos), str(out / "labelme"))
    assert len(dataset) == 2
    for path, _, found in dataset:
        np.testing.assert_array_equal(found.mask, expected[int(Path(path).stem)])
    document = json.loads((out / "labelme" / "000001.json").read_text())
    assert os.path.samefile(out / "labelme" / document["imagePath"], photos / "000001.png")

    yolo = sv.DetectionDataset.from_yolo(str(photos), str(out / "yolo" / "labels"), str(out / "yolo" / "data.yaml"))
    assert yolo.classes == ["object"]
    for path, _, found in yolo:
        masks = expected[int(Path(path).stem)]
        assert len(found) == len(masks)
        assert not (np.array(masks) & ~found.mask).any()

    for number, masks in expected.items():
        folder = out / "png" / f"{number:06d}-{number}"
        pictures = [np.array(Image.open(path)) > 0 for path in sorted(folder.glob("mask_*.png"))]
        np.testing.assert_array_equal(pictures, masks)
        index = np.array(Image.open(folder / "index.png"))
        np.testing.assert_array_equal(index > 0, np.any(masks, axis=0))

    rows = pq.read_table(out / "proposals.parquet").to_pylist()
    entries = json.loads((out / "proposals.json").read_text())
    assert len(rows) == len(entries)
    for row, entry in zip(rows, entries, strict=True):
        assert {"size": row.pop("size"), "counts": row.pop("counts")} == entry.pop("segmentation")
        assert row == entry and row["area"] > 0 and 0 <= row["stability"] <= 1 and len(row["window"]) == 4


def test_formats_are_part_of_what_resume_compares(
    photos: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert propose(photos, tiny_checkpoint, out, "png") == 0
    assert not (out / "proposals.json").exists() and (out / "png").is_dir()
    (out / "000001-1.json").unlink()
    before = (out / "png" / "000002-2" / "index.png").stat().st_mtime_ns
    # What is joined of the photos' results can be asked for at any time, the rest cannot.
    assert propose(photos, tiny_checkpoint, out, "png,coco,parquet", "--resume") == 0
    assert "1 of 2 photos have results" in capsys.readouterr().err
    assert (out / "png" / "000002-2" / "index.png").stat().st_mtime_ns == before
    assert len(masks_of(out)) == 2 and len(pq.read_table(out / "proposals.parquet")) > 2
    assert propose(photos, tiny_checkpoint, out, "labelme,png", "--resume") == 2
    assert 'formats was ["png"] and is ["labelme", "png"]' in capsys.readouterr().err


def test_refusals_come_before_the_search(
    photos: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    for names, said in (("coco,pngs", "got 'pngs' in 'coco,pngs'"), ("", "got '' in ''")):
        assert propose(photos, tiny_checkpoint, out, names) == 2
        line = capsys.readouterr().err
        assert line.startswith(
            "sharpmask: format must be some of coco, labelme, yolo, png, parquet, separated by commas"
        )
        assert said in line and line.count("\n") == 1
    (photos / "000001.jpg").write_bytes((photos / "000001.png").read_bytes())
    assert propose(photos, tiny_checkpoint, out, "yolo") == 2
    assert "would both be yolo/labels/000001.txt; search them in two runs, or rename one" in capsys.readouterr().err
    for name, package in formats.PACKAGES.items():
        monkeypatch.setattr(packages, "find_spec", lambda _: None)
        assert propose(photos, tiny_checkpoint, out, name) == 2
        assert f"format {name} needs the package {package}, which is not installed: pip" in capsys.readouterr().err
    assert not out.exists()
