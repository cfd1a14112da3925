"""An extension of griffe, which reads the docstrings for the site: Sphinx's notation becomes Markdown.

:role:`target` becomes a link if the target is in the API reference, and code otherwise. A block after ``::`` is Python.
"""

from __future__ import annotations

import re
import textwrap
from html import escape
from typing import Any

import griffe

ROLE = re.compile(r":(?:func|class|meth|mod|data|attr|exc):`(~?)([\w.]+)`")
BLOCK = re.compile(r"::\n\n((?:(?: {4}.*)?\n)+)")


def markdown(text: str, obj: griffe.Object) -> str:
    """A docstring of ``obj`` in Markdown."""

    def link(match: re.Match[str]) -> str:
        name = match[2].rpartition(".")[2] if match[1] else match[2]
        return f'<autoref identifier="{full_name(match[2], obj)}" optional><code>{escape(name)}</code></autoref>'

    def block(match: re.Match[str]) -> str:
        return f":\n\n```python\n{textwrap.dedent(match[1]).rstrip()}\n```\n\n"

    text = BLOCK.sub(block, ROLE.sub(link, f"{text}\n"))
    return text.replace("][", "]\\[")  # maps[i][j] is an index, no link


def full_name(name: str, obj: griffe.Object) -> str:
    """Where the object is that a docstring of ``obj`` calls ``name``."""
    try:
        found = obj.resolve(name)
        return obj.modules_collection[found].canonical_path
    except (griffe.NameResolutionError, griffe.AliasResolutionError, griffe.CyclicAliasError, KeyError):
        return name


class Roles(griffe.Extension):
    """Rewrites each docstring once everything is read, so that names can be looked up."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring and not obj.is_alias:
            obj.docstring.value = markdown(obj.docstring.value, obj)
