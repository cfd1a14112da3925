"""A pytest plugin (``-p bench.gpu.failures``): keeps the tensors of each failing test, in safetensors.

Kept is what the variables of the test and of the functions it called held when it failed: inputs, results, what was
expected. The files lie in the folder $SHARPMASK_FAILURES, named after the test. Tests that draw their arguments with
hypothesis are skipped where that is not installed.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import types
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

VARIABLE = "SHARPMASK_FAILURES"
MOST_BYTES = 64 << 20
"""Of a file."""
DEPTH = 4
"""Of lists and objects within each other that tensors are looked for in."""


def tensors(value: Any, name: str, depth: int = DEPTH) -> Iterator[tuple[str, Tensor]]:
    """The tensors in a value, with names."""
    if isinstance(value, Tensor):
        yield name, value
    elif depth == 0 or isinstance(value, type | types.ModuleType | str | bytes):
        return
    elif isinstance(value, torch.nn.Module):
        for key, parameter in value.named_parameters():
            yield f"{name}.{key}", parameter
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from tensors(item, f"{name}.{key}", depth - 1)
    elif isinstance(value, Sequence):
        for i, item in enumerate(value):
            yield from tensors(item, f"{name}.{i}", depth - 1)
    elif hasattr(value, "__dict__"):
        yield from tensors(vars(value), name, depth - 1)


def keep(path: Path, found: Iterator[tuple[str, Tensor]], told: str) -> None:
    """Writes as many of the tensors as fit. A device that fails to give one up is named in the file's ``told``."""
    kept: dict[str, Tensor] = {}
    room = MOST_BYTES
    for name, x in found:
        if x.is_meta or x.nbytes > room or name in kept:
            continue
        try:
            kept[name] = x.detach().to("cpu", copy=True).contiguous()
        except Exception as problem:  # an error on the device stays until the process ends
            told += f"\n{name} is lost: {str(problem).partition(chr(10))[0]}"
            continue
        room -= x.nbytes
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(kept, path, metadata={"told": told})


def of_frames(frames: Iterator[tuple[str, Mapping[str, Any]]]) -> Iterator[tuple[str, Tensor]]:
    for i, (function, variables) in enumerate(frames):
        yield from tensors(dict(variables), f"{i}.{function}")


def file_name(test: str) -> str:
    return re.sub(r"[^\w.-]+", "-", test.rpartition("/")[2])[-180:]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    folder = os.environ.get(VARIABLE)
    if folder and call.excinfo is not None and report.failed:
        frames = ((entry.name, entry.frame.f_locals) for entry in call.excinfo.traceback if _ours(entry.path))
        told = f"{item.nodeid}\n{call.excinfo.exconly()}"
        try:
            keep(Path(folder, f"{file_name(item.nodeid)}.safetensors"), of_frames(frames), told)
        except Exception as problem:  # the test's own failure matters more
            warnings.warn(f"the tensors of {item.nodeid} are not kept: {problem}", stacklevel=1)
    return report


def _ours(path: Any) -> bool:
    """Whether a function is of this repository, not of a package."""
    return "site-packages" not in str(path) and "_pytest" not in str(path)


def stand_ins() -> None:
    """What tests import in the place of packages that are not installed: what draws its arguments is skipped."""
    if importlib.util.find_spec("hypothesis") is None:
        hypothesis = mock.MagicMock()
        hypothesis.given = lambda *arguments, **options: pytest.mark.skip(reason="hypothesis is not installed")
        hypothesis.settings = lambda *arguments, **options: lambda function: function
        sys.modules["hypothesis"] = hypothesis
    if importlib.util.find_spec("onnxruntime") is None:
        sys.modules["onnxruntime"] = mock.MagicMock()  # stage prove leaves out what uses it


stand_ins()
