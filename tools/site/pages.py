"""A hook of MkDocs: every document keeps its place in the tree, so its relative links work here as on a code host.

Linked source files and folders become pages too, and a notebook is shown as the text and code of its cells.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("*.md", "contributing/*.md", "docs/**/*.*", "findings/README.md", "tools/*/README.md")
LANGUAGES = {
    ".py": "python",
    ".pyi": "python",
    ".h": "cpp",
    ".cuh": "cpp",
    ".cpp": "cpp",
    ".cu": "cuda",
    ".json": "json",
    ".sh": "bash",
    ".yml": "yaml",
    ".yaml": "yaml",
    ".patch": "diff",
    ".csv": "text",
    "": "text",
}
FENCE = "`" * 8
LINK = re.compile(r"(?<=\]\()([^)\s#]+)(?=[#)])")


def documents() -> list[str]:
    """Paths of all files that are shown as they are, from the root."""
    found = {path for pattern in DOCUMENTS for path in ROOT.glob(pattern) if path.is_file()}
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def outside_code(text: str) -> Iterator[tuple[str, bool]]:
    """The lines of a document, and whether each stands outside of code blocks."""
    outside = True
    for line in text.splitlines(keepends=True):
        fence = line.startswith("```")
        outside ^= fence
        yield line, outside and not fence


def links(page: str, text: str) -> set[str]:
    """What a page links to by relative paths, as paths from the root."""
    lines = "".join(line for line, outside in outside_code(text) if outside)
    targets = (target for target in LINK.findall(lines) if ":" not in target)
    return {posixpath.normpath(posixpath.join(posixpath.dirname(page), target)) for target in targets}


def sources(shown: list[str]) -> set[str]:
    """Linked source files and folders, with the files of the folders."""
    pages = [name for name in shown if name.endswith(".md")]
    linked = set.union(*(links(page, (ROOT / page).read_text(encoding="utf-8")) for page in pages))
    found = {name for name in linked if (ROOT / name).is_dir() or Path(name).suffix in LANGUAGES} - set(shown)
    inside = {path.relative_to(ROOT).as_posix() for name in found for path in members(name)}
    return {name for name in found | inside if (ROOT / name).exists()}


def members(folder: str) -> list[Path]:
    """The source files in a folder and below."""
    files = sorted((ROOT / folder).rglob("*"))
    return [path for path in files if path.is_file() and path.suffix in LANGUAGES and "__pycache__" not in path.parts]


def source_page(name: str) -> str:
    """A source file, or the list of a folder's files, as Markdown that the search leaves out."""
    head = f"---\ntitle: {name}\nsearch:\n  exclude: true\n---\n\n# {name}\n\n"
    path = ROOT / name
    if path.is_dir():
        files = [file.relative_to(path).as_posix() for file in members(name)]
        return head + "".join(f"- [{file}]({path.name}/{file}.md)\n" for file in files)
    return f'{head}{FENCE}{LANGUAGES[path.suffix]} linenums="1"\n{path.read_text(encoding="utf-8")}\n{FENCE}\n'


def notebook_page(name: str) -> str:
    """The cells of a notebook, and where to get it."""
    parts = [f'<p><a href="{posixpath.basename(name)}" download>Download this notebook</a></p>']
    for cell in json.loads((ROOT / name).read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    parts[:2] = parts[1::-1]  # the title first
    return "\n\n".join(parts) + "\n"


_generated: dict[str, str] = {}
"""Sources of generated pages, from the root: the pages' content."""


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Takes the documents from the root of the repository instead of from docs_dir."""
    for file in list(files):
        if file.src_dir == config.docs_dir:
            files.remove(file)
    shown = documents()
    for name in shown:
        files.append(File(name, os.fspath(ROOT), config.site_dir, config.use_directory_urls))
    _generated.clear()
    _generated.update({name: notebook_page(name) for name in shown if name.endswith(".ipynb")})
    _generated.update({name: source_page(name) for name in sorted(sources(shown))})
    for name, content in _generated.items():
        inclusion = InclusionLevel.UNDEFINED if name.endswith(".ipynb") else InclusionLevel.NOT_IN_NAV
        files.append(File.generated(config, f"{name}.md", content=content, inclusion=inclusion))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Links to sources lead to the pages made of them."""
    folder = posixpath.dirname(page.file.src_uri)

    def target(match: re.Match[str]) -> str:
        known = posixpath.normpath(posixpath.join(folder, match[0])) in _generated
        return f"{match[0].rstrip('/')}.md" if known else match[0]

    return "".join(LINK.sub(target, line) if outside else line for line, outside in outside_code(markdown))
