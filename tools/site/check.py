"""Checks the built site: every link, also those of the reference, leads to a page and a place in it, and pages load
nothing from outside: python -m tools.site.check build/site
"""

from __future__ import annotations

import posixpath
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
"""Tags whose address a browser fetches by itself."""


class Page(HTMLParser):
    """Addresses and places in one page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value}
        self.places |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.add(values["href"])
        if tag in LOADED and LOADED[tag] in values and values.get("rel") != "canonical":
            self.loaded.add(values[LOADED[tag]])


def faults(root: Path) -> list[str]:
    """One line for each broken link and each address outside that a page would fetch."""
    pages = {path.relative_to(root).as_posix(): Page(path.read_text(encoding="utf-8")) for path in root.rglob("*.html")}
    found = []
    for name, page in sorted(pages.items()):
        found += [f"{name}: loads {url}" for url in page.loaded if urlsplit(url).netloc]
        for url in sorted(page.links | page.loaded):
            scheme, host, path, _, place = urlsplit(url)
            if scheme or host or name == "404.html":  # its addresses begin at the root of the host
                continue
            target = posixpath.normpath(posixpath.join(posixpath.dirname(name), unquote(path))) if path else name
            if not (root / target).exists():
                found.append(f"{name}: no file for {url}")
            elif place and target in pages and unquote(place) not in pages[target].places:
                found.append(f"{name}: no place for {url}")
    return found


def main() -> int:
    root = Path(sys.argv[1])
    if not (root / "index.html").exists():
        sys.exit(f"{root} must be a built site, which has an index.html")
    found = faults(root)
    print(*found, sep="\n", end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
