"""The source tree of the distribution sharpmask-kernels: the operations alone, which need torch and NumPy only.

    python -m tools.kernels.source build/kernels && pip install build/kernels

What it shares with the distribution sharpmask is copied: the package, the C++ sources, setup.py, and of pyproject.toml
what holds for both.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT: Final = Path(__file__).parents[2]
COPIED: Final = ("LICENSE", "setup.py", "csrc", "sharpmask_kernels")
NEEDED: Final = ("torch", "numpy")
SHARED: Final = ("version", "requires-python", "license", "license-files", "authors", "classifiers", "urls")
MANIFEST: Final = "graft csrc\ngraft sharpmask_kernels\nglobal-exclude *.py[cod] *.so *.pyd _cpu_*.txt _cuda_*.txt\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.kernels.source", description="Writes the source tree.")
    parser.add_argument("out", type=Path, help="folder to write; it must be new, or an earlier tree of this program")
    write(parser.parse_args().out)


def write(out: Path) -> None:
    """Write the tree, in the place of an earlier one. Its folder ``build`` stays, from which a compiler goes on."""
    own = (out / "MANIFEST.in").is_file() and (out / "MANIFEST.in").read_text() == MANIFEST
    if out.exists() and not own and any(out.iterdir()):
        raise SystemExit(f"out: {out} must be new, or a tree that this program has written")
    out.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.rmtree(out / name, ignore_errors=True)
            compiled = shutil.ignore_patterns("__pycache__", "*.so", "*.pyd", "_cpu_*.txt", "_cuda_*.txt")
            shutil.copytree(ROOT / name, out / name, ignore=compiled)
        else:
            shutil.copy2(ROOT / name, out / name)
    shutil.copy2(Path(__file__).with_name("README.md"), out / "README.md")
    (out / "MANIFEST.in").write_text(MANIFEST)
    (out / "pyproject.toml").write_text("\n".join(as_toml(settings())) + "\n")


def settings() -> dict[str, dict[str, Any]]:
    """The tables of the tree's pyproject.toml."""
    whole = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project, tools = whole["project"], whole["tool"]
    data = tools["setuptools"]["package-data"]
    return {
        "build-system": whole["build-system"],
        "project": {
            "name": "sharpmask-kernels",
            "description": "Fused PyTorch operations for decoders that refine top-down, in C++, Triton and CUDA",
            "readme": "README.md",
            "keywords": ["pytorch", "segmentation", "decoder", "u-net", "cpu", "triton", "cuda"],
            "dependencies": [need for need in project["dependencies"] if re.match(r"[\w-]+", need)[0] in NEEDED],  # type: ignore[index]
            "optional-dependencies": {"gpu": project["optional-dependencies"]["gpu"]},
            **{key: project[key] for key in SHARED},
        },
        "tool": {
            "setuptools": {
                "include-package-data": False,
                "packages": {"find": {"include": ["sharpmask_kernels*"], "namespaces": False}},
                "package-data": {key: names for key, names in data.items() if key.startswith("sharpmask_kernels")},
            },
            "cibuildwheel": tools["cibuildwheel"],
        },
    }


def as_toml(tables: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Lines of TOML. JSON's texts, numbers and booleans are TOML's."""
    for name, table in tables.items():
        yield f"[{name}]"
        yield from (f"{key} = {inline(value)}" for key, value in table.items())


def inline(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(key)} = {inline(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(inline, value)) + "]"
    return json.dumps(value)


if __name__ == "__main__":
    main()
