"""Ops paired with the backends that have them: what the tests of this folder are run for."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import pytest
import torch

import sharpmask_kernels as kernels
from sharpmask_kernels import registry

REFINEMENT = ("merge_upsample", "refine", "add_upsample")
# Asked for the GPU's tests where there is no GPU, pytest shows them as skipped; else they would only be in the way.
DEVICES = tuple(dict.fromkeys([d.type for d in registry.devices()] + ["cuda"] * ("gpu" in sys.argv)))
NAMES = {torch.float64: "fp64", torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


class Subject(NamedTuple):
    """An op on a backend on a device."""

    op: str
    backend: str
    device: str

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self.function(*arguments, **options)

    @property
    def function(self) -> Callable[..., Any]:
        return functools.partial(getattr(kernels, self.op), backend=self.backend)

    @property
    def interpreted(self) -> bool:
        """Whether the kernel is interpreted or its threads are emulated, thousands of times slower than compiled."""
        return self.device == "cpu" and registry.backend(self.backend).simulated()

    def takes(self, dtype: torch.dtype) -> bool:
        return registry.backend(self.backend).refusal(torch.device(self.device), dtype) is None


def all_subjects(ops: Iterable[str] = registry.OPS) -> Iterator[Subject]:
    """Every op on every backend that has it, on each device that backend takes."""
    for op in ops:
        for backend in registry.BACKENDS:
            for device in DEVICES:
                subject = Subject(op, backend, device)
                if registry.backend(backend).has(op) and (subject.takes(torch.float32) or missing(backend)):
                    yield subject


def missing(backend: str) -> str | None:
    return registry.backend(backend).unavailable()


def _parameter(subject: Subject, *values: Any, name: str) -> Any:
    marks = [pytest.mark.gpu] if subject.device != "cpu" else []
    if reason := missing(subject.backend):
        marks.append(pytest.mark.skip(reason=f"backend {subject.backend}: {reason}"))
    return pytest.param(subject, *values, id=name, marks=marks)


def _name(subject: Subject) -> str:
    return f"{subject.op}-{subject.backend}" + (f"-{subject.device}" if subject.device != "cpu" else "")


def each(*ops: str, own: bool = False) -> Any:
    """Parametrises ``subject``; ``own`` leaves out the reference, which is PyTorch's kernels."""
    subjects = [s for s in all_subjects(ops or registry.OPS) if not (own and s.backend == "reference")]
    return pytest.mark.parametrize("subject", [_parameter(s, name=_name(s)) for s in subjects])


def each_dtype(*ops: str, dtypes: Iterable[torch.dtype] = tuple(NAMES)) -> Any:
    """Parametrises ``subject`` and ``dtype``, one that the backend takes."""
    return pytest.mark.parametrize(
        ("subject", "dtype"),
        [
            _parameter(s, dtype, name=f"{_name(s)}-{NAMES[dtype]}")
            for s in all_subjects(ops or registry.OPS)
            for dtype in dtypes
            if s.takes(dtype) or missing(s.backend)
        ],
    )
