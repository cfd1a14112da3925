"""The results in the documents: between the marks ``<!-- photo:NAME -->`` and ``<!-- /photo:NAME -->``."""

from __future__ import annotations

import re
from pathlib import Path

from sharpmask.files import write_text

from . import tables
from .contenders import OURS
from .plot import draw
from .process import ROOT
from .results import Results

PICTURE = Path("docs/images/photo_speed.png")


def markdown(rows: tables.Rows) -> str:
    first, *others = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([first, "|---" * len(rows[0]) + "|", *others])


def head(results: Results) -> str:
    """Machine, versions, commit and load in one line."""
    return "; ".join(f"{name}: {value}" for name, value in results.head.items())


def text(results: Results) -> str:
    """All tables in Markdown."""
    parts = [f"Measured with {head(results)}."]
    parts += [f"**{title}**\n\n{markdown(rows)}" for title, rows in tables.sections(results).items()]
    parts += [f"- {note}" for note in results.notes]
    return "\n\n".join(parts)


def sentence(results: Results) -> str:
    """The line of the README: the shipped model's time with the most threads and the fewest windows."""
    own = [m for m in results.measured if m.name == OURS and m.model == "shipped"]
    best = max(own, key=lambda m: (m.threads, -m.count))
    height, width = results.size
    cores = f"{best.threads} core{'s' * (best.threads > 1)} of {results.head['CPU']}"
    return (
        f"The best {best.count} masks of a photo of {height}x{width} take {best.median:.2f} s on {cores} "
        "([how](docs/photo-speed.md))."
    )


def write(results: Results, root: Path = ROOT) -> None:
    """Writes the picture, the tables and the README's line."""
    draw(results, root / PICTURE)
    picture = f"![Seconds that a photo takes, by model and contender](images/{PICTURE.name})"
    fill(root / "docs/photo-speed.md", "results", f"\n{picture}\n\n{text(results)}\n")
    fill(root / "README.md", "line", f"\n{sentence(results)}\n")


def fill(page: Path, name: str, content: str) -> None:
    """Puts ``content`` between the marks of a page. Raises ``ValueError`` if it has none."""
    start, end = f"<!-- photo:{name} -->", f"<!-- /photo:{name} -->"
    old = page.read_text(encoding="utf-8")
    new, found = re.subn(f"{start}.*?{end}", lambda _: f"{start}{content}{end}", old, flags=re.DOTALL)
    if found != 1:
        raise ValueError(f"{page}: must have {start} and {end} once, got {found} such pairs")
    write_text(page, new)
