"""The shape of the source tree: which module may import which, how long a file or a function may be, one signature.

An import counts wherever it stands: at the top, in a function, under ``TYPE_CHECKING``. A module that is looked up by
its name at run time (``importlib``) is no import: that is how the registry finds a backend and how a self-check is
started. A package whose names are imported lazily has its imports in ``__init__.pyi``.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from sharpmask_kernels import registry

ROOT = Path(__file__).parents[1]
PACKAGES = ("sharpmask", "sharpmask_kernels")

FORBIDDEN = [
    ("sharpmask_kernels", "sharpmask"),
    ("sharpmask_kernels.backends", "sharpmask_kernels.dispatch"),
    ("sharpmask_kernels.backends", "sharpmask_kernels.functional"),
    ("sharpmask_kernels.backends", "sharpmask_kernels.ops"),
    ("sharpmask_kernels.ops", "sharpmask_kernels.functional"),
    ("sharpmask_kernels.registry", "sharpmask_kernels.backends"),
    ("sharpmask.search", "sharpmask.training"),
    ("sharpmask.models", "sharpmask.search"),
    ("sharpmask.models", "sharpmask.training"),
    ("sharpmask.data", "sharpmask.models"),
    ("sharpmask.search", "sharpmask.cli"),
    ("sharpmask.search", "sharpmask.app"),
    ("sharpmask.app", "sharpmask.cli"),
    ("sharpmask.batch", "sharpmask.cli"),
    ("sharpmask.search", "sharpmask.batch"),
    ("sharpmask.formats", "sharpmask.search"),
    ("sharpmask.formats", "sharpmask.models"),
    ("sharpmask.training", "sharpmask.cli"),
    ("sharpmask.evaluation", "sharpmask.cli"),
]
"""What the modules on the left may not import: it lies above them."""

Graph = dict[str, set[str]]


def modules(root: Path) -> dict[str, Path]:
    """Every module of the packages in ``root``, by its dotted name."""
    found = {}
    for package in PACKAGES:
        files = [*(root / package).rglob("*.py"), *(root / package).rglob("__init__.pyi")]
        for path in sorted(files):  # so the stub takes the place of its package, which has no other import
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: set[str]) -> Iterator[str]:
    """The modules among ``known`` that the module ``name`` imports."""
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *filter(None, [node.module])])
            members = {f"{source}.{alias.name}" for alias in node.names}
            yield from members & known
            if source in known and not members <= known:
                yield source


def import_graph(root: Path) -> Graph:
    found = modules(root)
    return {name: set(imports(name, path, set(found))) for name, path in found.items()}


def circle(graph: Graph) -> list[str] | None:
    """Modules that import each other in turn, the first of them again at the end, or None."""
    finished: set[str] = set()

    def visit(name: str, trail: list[str]) -> list[str] | None:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name not in finished:
            for other in sorted(graph[name]):
                if found := visit(other, [*trail, name]):
                    return found
            finished.add(name)
        return None

    return next(filter(None, (visit(name, []) for name in sorted(graph))), None)


def upward(graph: Graph) -> list[str]:
    """Imports that :data:`FORBIDDEN` forbids."""

    def within(name: str, package: str) -> bool:
        return name == package or name.startswith(f"{package}.")

    return [
        f"{name} imports {other}"
        for name, others in graph.items()
        for other in sorted(others)
        if any(within(name, low) and within(other, high) for low, high in FORBIDDEN)
    ]


def test_no_import_circle() -> None:
    found = circle(import_graph(ROOT))
    assert found is None, " -> ".join(found or [])


def test_lazy_packages_have_all_their_imports_in_the_stub() -> None:
    for stub in ROOT.glob("sharpmask*/**/__init__.pyi"):
        body = ast.parse(stub.with_suffix(".py").read_text()).body
        assert [ast.unparse(n) for n in body if isinstance(n, (ast.Import, ast.ImportFrom))] == ["import lazy_loader"]


def test_no_import_runs_upward() -> None:
    found = upward(import_graph(ROOT))
    assert not found, "\n".join(found)


CIRCLES = {
    "at the top": ("from . import b", "from .a import x"),
    "in a function": ("def f():\n    from .b import y", "import sharpmask.a"),
    "for typing": (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .b import Y",
        "from sharpmask.a import x",
    ),
    "through the package": ("from . import x", "x = 1"),
    "through a lazy package": ("from . import x", "x = 1"),
}


@pytest.mark.parametrize("kind", CIRCLES)
def test_a_circle_is_found(kind: str, tmp_path: Path) -> None:
    a, b = CIRCLES[kind]
    (tmp_path / "sharpmask").mkdir()
    (tmp_path / "sharpmask/a.py").write_text(a)
    (tmp_path / "sharpmask/b.py").write_text(b)
    (tmp_path / "sharpmask/__init__.py").write_text("from .a import f" if kind == "through the package" else "")
    if kind == "through a lazy package":
        (tmp_path / "sharpmask/__init__.pyi").write_text("from .a import f as f")
    found = circle(import_graph(tmp_path))
    assert found is not None and "sharpmask.a" in found and found[0] == found[-1]


@pytest.mark.parametrize(("low", "high"), FORBIDDEN)
def test_an_upward_import_is_found(low: str, high: str, tmp_path: Path) -> None:
    for module in (low, high):
        folder = tmp_path.joinpath(*module.split("."))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "__init__.py").touch()
    (tmp_path.joinpath(*low.split(".")) / "inner.py").write_text(f"def f():\n    import {high}\n")
    assert upward(import_graph(tmp_path)) == [f"{low}.inner imports {high}"]


# Sizes.

SHIPPED = ("sharpmask", "sharpmask_kernels", "csrc", "bench", "tools", "examples")
LINES = {".py": 400, ".h": 450, ".cpp": 450, ".cu": 450, ".cuh": 450}
FUNCTION_LINES = 60


def shipped() -> list[Path]:
    files = [path for folder in SHIPPED for path in sorted((ROOT / folder).rglob("*"))]
    return [path for path in [ROOT / "setup.py", *files] if path.suffix in LINES]


def python_functions(text: str) -> Iterator[tuple[str, int]]:
    """Names and numbers of lines."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def cpp_functions(text: str) -> Iterator[tuple[str, int]]:
    """The same for C++ that clang-format has laid out: a head begins after a finished line, its body ends below it."""
    lines = text.splitlines()
    head = 0
    for number, line in enumerate(lines):
        before = lines[number - 1].partition("//")[0].rstrip() if number else ""
        if before == "" or before.endswith((";", "{", "}", ":")):
            head = number
        if not line.endswith("{") or "(" not in (signature := " ".join(lines[head : number + 1])):
            continue
        start = lines[head]
        if re.match(r"\s*(\} )?(if|for|while|switch|else|do|catch|namespace|struct|class|enum|extern)\b", start):
            continue
        closing = start[: len(start) - len(start.lstrip())] + "}"
        end = next((i for i in range(number + 1, len(lines)) if lines[i].startswith(closing)), number)
        name = re.search(r"([\w:~]+) ?\(", signature)
        yield name[1] if name else start, end - head + 1


def excepted() -> str:
    """The section of CONTRIBUTING.md that lists exceptions."""
    _, _, section = (ROOT / "CONTRIBUTING.md").read_text().partition("## Size limits")
    return section.partition("\n## ")[0]


def test_files_and_functions_are_short() -> None:
    allowed = excepted()
    long = []
    for path in shipped():
        name, text = path.relative_to(ROOT).as_posix(), path.read_text()
        if text.count("\n") > LINES[path.suffix] and f"`{name}`" not in allowed:
            long.append(f"{name}: {text.count(chr(10))} lines")
        functions = python_functions if path.suffix == ".py" else cpp_functions
        for function, lines in functions(text):
            if lines > FUNCTION_LINES and f"`{function}`" not in allowed:
                long.append(f"{name}: {function} has {lines} lines")
    assert not long, "\n".join(long)


def test_a_long_function_is_found() -> None:
    body = "    a += 1;\n" * 70
    head = "namespace {\n\n// Adds.\ntemplate <class T>\nint f(int a,\n      int b) {\n"
    text = head + body + "}\n\nint g() {\n    return 1;\n}\n\n}\n"
    assert list(cpp_functions(text)) == [("f", 74), ("g", 3)]
    assert [lines for _, lines in python_functions("def f():\n" + "    x = 1\n" * 70)] == [71]


# One signature.


@pytest.mark.parametrize("op", registry.OPS)
def test_every_backend_has_the_signature_of_the_reference(op: str) -> None:
    reference = registry.room("reference", registry.ROOMS[op])
    for name in registry.having(op):
        room = registry.room(name, registry.ROOMS[op])
        for function in (op, f"{op}_backward"):
            if not hasattr(reference, function):
                continue
            expected = inspect.signature(getattr(reference, function)).parameters
            found = dict(inspect.signature(getattr(room, function)).parameters)
            found.pop("stream", None)  # a decorator of the cuda backend adds it
            assert list(found.values()) == list(expected.values()), f"{function} on {name}"


def test_every_folder_of_the_packages_is_a_package() -> None:
    """A folder without ``__init__.py`` works in a checkout and is left out of a wheel."""
    folders = {path.parent for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []
