"""The results in the documents: between the marks ``<!-- photo:NAME -->`` and ``<!-- /photo:NAME -->``."""

from __future__ import annotations

from pathlib import Path

from ..pages import ROOT, fill, markdown
from . import tables
from .contenders import OURS
from .plot import draw
from .results import Results

PICTURE = Path("docs/images/photo_speed.png")


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
    fill(root / "docs/photo-speed.md", "photo:results", f"\n{picture}\n\n{text(results)}\n")
    fill(root / "README.md", "photo:line", f"\n{sentence(results)}\n")
