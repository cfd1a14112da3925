"""Results in the documents: Markdown tables between the marks ``<!-- MARK -->`` and ``<!-- /MARK -->``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from sharpmask.files import write_text

ROOT = Path(__file__).parents[1]


def markdown(rows: Sequence[Sequence[str]]) -> str:
    first, *others = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([first, "|---" * len(rows[0]) + "|", *others])


def fill(page: Path, mark: str, content: str) -> None:
    """Puts ``content`` between the marks of a page. Raises ``ValueError`` if it has none."""
    start, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    old = page.read_text(encoding="utf-8")
    new, found = re.subn(f"{start}.*?{end}", lambda _: f"{start}{content}{end}", old, flags=re.DOTALL)
    if found != 1:
        raise ValueError(f"{page}: must have {start} and {end} once, got {found} such pairs")
    write_text(page, new)
