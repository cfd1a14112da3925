"""What the documents name exists: linked files and headings, paths, modules run with ``python -m``, make targets."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "contributing/**/*.md", ".github/**/*.md")
    for path in ROOT.glob(pattern)
)
FOLDERS = "bench|configs|contributing|csrc|docs|examples|sharpmask|sharpmask_kernels|tests|tools"
# Names of files that are not there: placeholders, the worked op (tests/test_new_op.py builds it), the worked backend.
EXAMPLES = re.compile(r"/(test_)?(OP|NAME|scale_channels|xpu)\b")


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose(page: Path) -> str:
    """The text without code blocks."""
    return re.sub(r"^```.*?^```$", "", text(page), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What a link can name after ``#``, by GitHub's rules for headings."""
    headings = re.findall(r"^#+ +(.+?) *$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links(page: str) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(ROOT / page)):
        if re.match(r"https?:|mailto:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("page", PAGES)
def test_paths(page: str) -> None:
    """Paths anywhere in the text, except patterns and examples."""
    named = re.findall(rf"(?<![\w./-])((?:{FOLDERS})/[\w./-]*\w)(?![\w/{{}}*<>$-])", text(ROOT / page))
    assert not [path for path in named if not EXAMPLES.search(path) and not (ROOT / path).exists()]


@pytest.mark.parametrize("page", PAGES)
def test_source_files(page: str) -> None:
    """Pages may leave out the first folders of a source file, as in ``simd/vector.h``."""
    named = re.findall(r"`([\w/]+\.(?:py|pyi|h|cpp|cu|cuh))`", text(ROOT / page))
    named = [name for name in named if not EXAMPLES.search(name)]
    folders = [ROOT / folder for folder in FOLDERS.split("|")]
    assert not [name for name in named if not (ROOT / name).exists() and not any(any(f.rglob(name)) for f in folders)]


@pytest.mark.parametrize("page", PAGES)
def test_commands(page: str) -> None:
    content = text(ROOT / page)
    modules = re.findall(rf"python3? -m ((?:{FOLDERS})[\w.]*)", content)
    files = [ROOT.joinpath(*name.split(".")) for name in modules]
    missing = [file for file in files if not (file.with_suffix(".py").exists() or (file / "__main__.py").exists())]
    targets = set(re.findall(r"^([a-z]+):", text(ROOT / "Makefile"), flags=re.MULTILINE))
    used = set(re.findall(r"(?:^|`)make ([a-z]+)\b", content, flags=re.MULTILINE))
    assert (missing, used - targets) == ([], set())


def test_the_index_lists_every_document() -> None:
    index = ROOT / "docs/README.md"
    listed = {(index.parent / link).resolve() for link in re.findall(r"\]\(([^)#]+)\)", text(index))}
    pages = {ROOT / page for page in PAGES if not page.startswith(".github/")} - {index}
    assert not pages - listed


def test_every_page_is_looked_at() -> None:
    assert {"README.md", "CONTRIBUTING.md", "docs/benchmarks.md", ".github/pull_request_template.md"} <= set(PAGES)
