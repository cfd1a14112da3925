"""``sharpmask propose``: which photos it searches, and which of their pixels."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from sharpmask.cli import main
from sharpmask.data.images import load_image

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def folder(synth: Path, tmp_path: Path) -> Path:
    """A photo, one that is to be turned, and one in a subfolder."""
    root = tmp_path / "photos"
    (root / "sub").mkdir(parents=True)
    for number, name in ((1, "a.png"), (2, "sub/b.png")):
        shutil.copy(synth / "images" / f"00000{number}.png", root / name)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(synth / "images" / "000003.png").save(root / "c.png", exif=exif)
    (root / "notes.txt").write_text("x")
    return root


def propose(checkpoint: Path, *arguments: object) -> int:
    return main(["propose", *map(str, arguments), "--checkpoint", str(checkpoint), "--top-n", "3"])


def entries_of(out: Path) -> dict[str, list[dict[str, Any]]]:
    """The merged results by photo."""
    found: dict[str, list[dict[str, Any]]] = {}
    for entry in json.loads((out / "proposals.json").read_text()):
        found.setdefault(Path(entry["file_name"]).name, []).append(entry)
    return found


@pytest.mark.parametrize("below", ["", "found"])
def test_its_own_pictures_are_never_photos(folder: Path, tiny_checkpoint: Path, below: str, capsys: Capture) -> None:
    """Neither where results go into the photos' folder, nor where a later run looks into the results' folder."""
    out = folder / below
    for _ in range(3):
        assert propose(tiny_checkpoint, folder, "--out", out, "--recursive") == 0
        assert "proposals.json: 3 of 3 photos" in capsys.readouterr().out
        assert entries_of(out).keys() == {"a.png", "b.png", "c.png"}
    assert len(list(out.glob("*.png"))) == (5 if not below else 3)


def test_what_is_passed_over_is_told(folder: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    assert propose(tiny_checkpoint, folder, "--out", out) == 0
    captured = capsys.readouterr()
    assert "2 of 2 photos" in captured.out
    (line,) = [line for line in captured.err.splitlines() if "passed over" in line]
    assert line == (
        f"{folder}: passed over: 1 file of another kind: notes.txt, 1 subfolder (--recursive looks into it): sub"
    )
    assert propose(tiny_checkpoint, folder, "--out", out, "--recursive") == 0
    assert "3 of 3 photos" in capsys.readouterr().out and "b.png" in entries_of(out)


def test_results_say_which_pixels_they_mean(folder: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    masks = {}
    for exif in ("turned", "stored"):
        out = tmp_path / exif
        assert propose(tiny_checkpoint, folder / "c.png", "--out", out, "--exif", exif) == 0
        entries = entries_of(out)["c.png"]
        assert {entry["exif"] for entry in entries} == {exif}
        pixels = load_image(folder / "c.png", exif=exif)  # type: ignore[arg-type]
        assert [entry["segmentation"]["size"] for entry in entries] == [list(pixels.shape[:2])] * len(entries)
        (overlay,) = out.glob("*.png")
        assert load_image(overlay).shape == pixels.shape
        masks[exif] = [coco_mask.decode(entry["segmentation"]) for entry in entries]
    assert not np.array_equal(masks["turned"][0], np.rot90(masks["stored"][0], -1)), "each is searched by itself"


def test_results_of_other_pixels_than_the_annotated_are_refused(
    synth: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: Capture
) -> None:
    """A photo upside down has the same size, so only the results' own word can tell."""
    data = tmp_path / "data"
    (data / "images").mkdir(parents=True)
    shutil.copy(synth / "instances.json", data)
    upside_down = Image.Exif()
    upside_down[0x0112] = 3
    for path in (synth / "images").iterdir():
        Image.open(path).save(data / "images" / path.name, exif=upside_down)
    for exif in ("turned", "stored"):
        assert propose(tiny_checkpoint, data / "images", "--out", tmp_path / exif, "--exif", exif) == 0

    def evaluate(results: str, *options: str) -> int:
        file = str(tmp_path / results / "proposals.json")
        return main(["eval", "--dataset", str(data), "--results", file, "--out", str(tmp_path / "out"), *options])

    assert evaluate("stored", "--exif", "stored") == 0 == evaluate("turned", "--exif", "turned")
    capsys.readouterr()
    for results, exif in (("turned", "stored"), ("stored", "turned")):
        assert evaluate(results, "--exif", exif) != 0
        assert f"search them with propose --exif {exif}" in capsys.readouterr().err
    assert evaluate("turned") != 0
    assert "say which pixels are annotated" in capsys.readouterr().err
    # Where no photo is turned, the two are the same.
    shutil.rmtree(data / "images")
    shutil.copytree(synth / "images", data / "images")
    assert evaluate("turned") == 0 == evaluate("turned", "--exif", "stored")
