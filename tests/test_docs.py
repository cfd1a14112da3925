"""What the documents show is true: Python snippets run, and quoted output is what a user gets."""

from __future__ import annotations

import importlib
import inspect
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sharpmask.data.coco import CocoFolder
from sharpmask.errors import DataError
from sharpmask_kernels import registry
from tools.site import check as site

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("page", ["docs/drop-in.md", "docs/kernels.md", "docs/predictor.md"])
def test_snippets(page: str) -> None:
    """They run one after another, as a reader would paste them."""
    snippets = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    assert snippets
    # Pasted lines have no module to be found in; a class statement looks for its name.
    names: dict[str, Any] = {"__name__": "snippets"}
    for number, snippet in enumerate(snippets):
        exec(compile(snippet, f"{page}, snippet {number + 1}", "exec"), names)


def test_the_table_of_backends() -> None:
    """docs/backends.md marks exactly the ops that a backend has."""
    lines = (ROOT / "docs/backends.md").read_text().splitlines()
    table = itertools.takewhile(lambda line: line[:1] == "|", itertools.dropwhile(lambda line: line[:1] != "|", lines))
    head, _, *rows = [line.strip("|").split("|") for line in table]
    names = [cell.strip(" `") for cell in head[1:]]
    marked = {
        (row[0].strip(" `"), name) for row in rows for name, cell in zip(names, row[1:], strict=True) if "✓" in cell
    }
    assert set(names) == set(registry.BACKENDS)
    assert marked == {(op, name) for op in registry.OPS for name in registry.BACKENDS if registry.backend(name).has(op)}


def test_the_line_about_a_bad_folder(tmp_path: Path) -> None:
    """docs/own-data.md quotes it as it is."""
    (tmp_path / "images").mkdir()
    Image.new("RGB", (320, 240)).save(tmp_path / "images/000001.png")
    image = {"id": 1, "file_name": "000001.png", "width": 321, "height": 240}
    content = {"images": [image], "categories": [{"id": 1, "name": "cup"}], "annotations": []}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    with pytest.raises(DataError) as error:
        CocoFolder(tmp_path)
    line = str(error.value).replace(str(tmp_path), "data/train")
    assert f"\nsharpmask: {line}\n" in (ROOT / "docs/own-data.md").read_text()


@pytest.mark.parametrize(
    "package",
    [
        "sharpmask",
        "sharpmask.models",
        "sharpmask.training",
        "sharpmask.evaluation",
        "sharpmask.batch",
        "sharpmask.distributed",
        "sharpmask_kernels",
    ],
)
def test_the_reference_has_every_public_name(package: str) -> None:
    shown = set(re.findall(r"^::: (\S+)$", "".join(page.read_text() for page in (ROOT / "docs/api").iterdir()), re.M))
    last = {name.rpartition(".")[2] for name in shown}
    module = importlib.import_module(package)
    names = [name for name in module.__all__ if not inspect.ismodule(getattr(module, name))]
    assert [name for name in names if name not in last and not name.startswith("__")] == []


def test_faults_of_the_built_site_are_found(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text(
        '<h1 id="here"></h1><a href="#here"></a><a href="sub/a.html#there"></a><a href="https://example.com"></a>'
        '<a href="#gone"></a><a href="sub/b.html"></a><script src="https://example.com/x.js"></script>'
    )
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a.html").write_text('<p id="there"><a href="../index.html"></a><a href="../index.html#no"></a>')
    assert site.faults(tmp_path) == [
        "index.html: loads https://example.com/x.js",
        "index.html: no place for #gone",
        "index.html: no file for sub/b.html",
        "sub/a.html: no place for ../index.html#no",
    ]
