"""The Python snippets of the documents run, one after another, as a reader would paste them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("page", ["docs/drop-in.md"])
def test_snippets(page: str) -> None:
    snippets = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    assert snippets
    # Pasted lines have no module to be found in; a class statement looks for its name.
    names: dict[str, Any] = {"__name__": "snippets"}
    for number, snippet in enumerate(snippets):
        exec(compile(snippet, f"{page}, snippet {number + 1}", "exec"), names)
