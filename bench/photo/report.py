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
    """The line of the README and the model card: the shipped model with the most threads."""
    own = [m for m in results.measured if m.name == OURS and m.model == "shipped"]
    threads = max(m.threads for m in own)
    own = sorted((m for m in own if m.threads == threads), key=lambda m: m.count)
    few, many = own[0], own[-1]
    height, width = results.size
    head = results.head
    cores = f"{threads} core{'s' * (threads > 1)} of {head['CPU']} with {head['instruction set']}"
    return (
        f"The best {few.count} masks of a photo of {height}x{width} take {few.median:.2f} s, the best {many.count} "
        f"{many.median:.2f} s, with at most {tables.megabytes(many.peak)} beyond the loaded model, on {cores}, "
        f"torch {head['torch']} (commit {head['commit']}; [how](docs/photo-speed.md))."
    )


def write(results: Results, root: Path = ROOT) -> None:
    """Writes the picture, the tables, and the line of the README and of the model card."""
    draw(results, root / PICTURE)
    picture = f"![Seconds that a photo takes, by model and contender](images/{PICTURE.name})"
    fill(root / "docs/photo-speed.md", "photo:results", f"\n{picture}\n\n{text(results)}\n")
    for page in ("README.md", "MODEL_CARD.md"):
        fill(root / page, "photo:line", f"\n{sentence(results)}\n")
