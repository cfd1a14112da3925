"""The tutorials do what they say: their Python and their commands run in order, and the notebook runs in Jupyter."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

from sharpmask.cli import main
from sharpmask.data.synthetic import synthesize

TUTORIALS = Path(__file__).parents[1] / "docs/tutorials"
COFFEE = Path(str(files("sharpmask") / "assets" / "coffee.jpg"))
SHORTER = {
    "--validation data/val --out run": "--validation data/val --out run --steps 2 --warmup 1 --validate-every 2 "
    "--validation-samples 4",
}
"""What makes the commands of a tutorial quick. Each must stand in one of them."""


def photos(folder: Path) -> None:
    """What the reader of photos.md has."""
    folder.mkdir()
    with Image.open(COFFEE) as photo:
        photo.resize((photo.width // 2, photo.height // 2)).save(folder / "coffee.jpg")


def drawn(folder: Path, count: int, seed: int) -> None:
    """What labelme writes: a JSON file beside each photo. The outlines are the objects' boxes."""
    made = folder.parent / f"made{seed}"
    source = synthesize(made, images=count, seed=seed, size=(160, 160), textures="generated")
    shutil.copytree(source / "images", folder)
    document = json.loads((source / "instances.json").read_text())
    for image in document["images"]:
        boxes = [each["bbox"] for each in document["annotations"] if each["image_id"] == image["id"]]
        shapes = [{"label": "it", "points": [[x, y], [x + w, y], [x + w, y + h], [x, y + h]]} for x, y, w, h in boxes]
        head = {"imagePath": image["file_name"], "imageHeight": image["height"], "imageWidth": image["width"]}
        (folder / image["file_name"]).with_suffix(".json").write_text(json.dumps(head | {"shapes": shapes}))


def run_page(name: str) -> set[str]:
    """Runs the blocks of a page as its reader would, in the working folder; the lines that are commands of others."""
    names: dict[str, Any] = {"__name__": "tutorial"}  # a class statement looks for its module's name
    others = set()
    blocks = re.findall(r"^```(python|bash)\n(.*?)^```", (TUTORIALS / name).read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    for language, text in blocks:
        if language == "python":
            exec(compile(text, name, "exec"), names)
            continue
        for line in text.replace("\\\n", " ").splitlines():
            for long, short in SHORTER.items():
                line = line.replace(long, short)
            if line.startswith("sharpmask "):
                assert main(shlex.split(line)[1:]) == 0, line
            else:
                others.add(line)
    return others


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("page", ["decoder.md", "kernels.md"])
def test_kernels(page: str) -> None:
    assert run_page(page) == set()


def test_masks_from_photos() -> None:
    photos(Path("photos"))
    assert run_page("photos.md") == set()
    assert Path("found/proposals.json").exists() and list(Path().glob("object_*.png"))


def test_fine_tuning() -> None:
    text = (TUTORIALS / "fine-tune.md").read_text()
    assert all(long in text for long in SHORTER)
    Path("data").mkdir()
    drawn(Path("data/train"), 3, seed=1)
    drawn(Path("data/val"), 1, seed=2)
    assert run_page("fine-tune.md") == {"pip install '.[train,formats]'"}
    assert Path("run/checkpoint.safetensors").exists() and Path("after").exists() and Path("found").exists()


def test_the_notebook() -> None:
    notebook = nbformat.read(TUTORIALS / "clicks.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count is None and cell.outputs == [] for cell in code)  # kept without results
    NotebookClient(notebook, timeout=120).execute()
    assert all(cell.outputs for cell in code)


def test_every_tutorial_is_run() -> None:
    ran = {"photos.md", "fine-tune.md", "decoder.md", "kernels.md", "clicks.ipynb"}
    assert {path.name for path in TUTORIALS.iterdir()} == ran
