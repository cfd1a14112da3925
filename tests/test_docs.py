"""The Python snippets of the documents run, one after another, as a reader would paste them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from sharpmask_kernels import registry

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("page", ["docs/drop-in.md", "docs/kernels.md"])
def test_snippets(page: str) -> None:
    snippets = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    assert snippets
    # Pasted lines have no module to be found in; a class statement looks for its name.
    names: dict[str, Any] = {"__name__": "snippets"}
    for number, snippet in enumerate(snippets):
        exec(compile(snippet, f"{page}, snippet {number + 1}", "exec"), names)


def test_the_table_of_backends() -> None:
    """docs/backends.md marks exactly the ops that a backend has."""
    lines = [
        line.strip("|").split("|") for line in (ROOT / "docs/backends.md").read_text().splitlines() if line[:1] == "|"
    ]
    head, _, *rows = lines[: 2 + len(registry.OPS)]
    names = [cell.strip(" `") for cell in head[1:]]
    marked = {
        (row[0].strip(" `"), name) for row in rows for name, cell in zip(names, row[1:], strict=True) if "✓" in cell
    }
    assert set(names) == set(registry.BACKENDS)
    assert marked == {(op, name) for op in registry.OPS for name in registry.BACKENDS if registry.backend(name).has(op)}
