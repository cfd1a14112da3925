"""What is particular to the compiled module: threads, forks, and windows that its callers never let through."""

from __future__ import annotations

import functools
import math
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from sharpmask_kernels import _cpu
from sharpmask_kernels.backends import native
from sharpmask_kernels.backends.cpu import device, encode_windows, gather_windows, refinement
from sharpmask_kernels.backends.reference import encode_windows as encode_reference
from sharpmask_kernels.backends.reference import gather_windows as gather_reference
from sharpmask_kernels.backends.reference import refinement as refine_reference
from sharpmask_kernels.windows import logit

FORMATS = [torch.contiguous_format, torch.channels_last]
SIZES = [(9, 14), (31, 22), (5, 40)]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def random_windows(count: int, generator: torch.Generator) -> list[Tensor]:
    """Image, scale, row, col over and around the maps; two images."""
    limits = [(0, 2), (0, len(SIZES)), (-6, 30), (-6, 30)]
    return [torch.randint(low, high, (count,), generator=generator) for low, high in limits]


def both_ways(dtype: torch.dtype, memory_format: torch.memory_format) -> list[Tensor]:
    """Windows of 8x8 cells and the gradient of their maps: enough work for several threads, and overlaps to add."""
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, 70, *size, generator=generator).to(dtype) for size in SIZES]
    windows = random_windows(300, generator)
    out = gather_windows.gather_windows([m.contiguous(memory_format=memory_format) for m in maps], *windows, 8, 1)
    grad = torch.randn(out.shape, generator=generator).to(dtype).contiguous(memory_format=memory_format)
    heights, widths = zip(*SIZES, strict=True)
    last = memory_format == torch.channels_last
    return [
        out,
        *gather_windows.gather_windows_backward(grad, *windows, 2, heights, widths, last, [True] * len(SIZES), 1),
    ]


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", native.DTYPES, ids=str)
def test_same_bits_for_any_number_of_threads(dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    torch.set_num_threads(1)
    expected = both_ways(dtype, memory_format)
    for count in (2, 3, 5, 2):
        torch.set_num_threads(count)
        for found, same in zip(both_ways(dtype, memory_format), expected, strict=True):
            assert torch.equal(found, same)


FEATURES = [(3, 300, 35, 7, 9), (2, 5, 3, 45, 61), (9, 17, 9, 10, 10), (1, 260, 2, 3, 700), (1, 1, 1, 1, 1)]
"""Batch, channels of feature and skip, height, width: beyond what is taken at once, and no multiples of it."""


def dense(x: Tensor) -> Tensor:
    return x


def sparse(x: Tensor) -> Tensor:
    """Every other column of a wider map: its pixels are evenly spaced in a row alone."""
    return x.repeat_interleave(2, dim=3)[..., ::2]


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


LAYOUTS = [dense, sparse, channels_last]


def refined(
    backend: ModuleType,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    layout: Callable[[Tensor], Tensor] = dense,
    padding: str = "zeros",
) -> list[Tensor]:
    """The skip, and the gradients of refine's feature, skip weight and skip bias."""
    batch, channels, outputs, height, width = shape
    generator = torch.Generator().manual_seed(0)
    randn = functools.partial(torch.randn, generator=generator, dtype=torch.float64)
    feature, mask = randn(batch, channels, height, width), randn(batch, 2, height, width)
    weights = [randn(outputs, channels, 3, 3), randn(outputs), randn(2, outputs + 2, 3, 3), randn(2)]
    grad = randn(batch, 2, 2 * height, 2 * width)
    feature, mask, grad, *weights = (x.to(dtype) for x in (feature, mask, grad, *weights))
    feature = layout(feature)
    _, skip, active = backend.refine(feature, mask, *weights, "bilinear", padding, True)
    needs = [True, False, True, True, False, False]
    arguments = (grad, active, skip, feature, mask, weights[0], weights[2], "bilinear", padding, False, needs)
    return [skip, *backend.refine_backward(*arguments)]


@pytest.mark.parametrize("padding", ["zeros", "replicate"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", FEATURES, ids=str)
def test_features_of_any_size(shape: tuple[int, ...], layout: Callable[[Tensor], Tensor], padding: str) -> None:
    expected = refined(refine_reference, shape, torch.float64, layout, padding)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        for found, right in zip(refined(refinement, shape, dtype, layout, padding), expected, strict=True):
            assert found.dtype == dtype
            assert (found - right).norm() <= tolerance * right.norm()


@pytest.mark.parametrize("shape", FEATURES[:3], ids=str)
def test_same_bits_of_a_feature_for_any_number_of_threads(shape: tuple[int, ...]) -> None:
    torch.set_num_threads(1)
    expected = refined(refinement, shape, torch.float32)
    for count in (2, 5):
        torch.set_num_threads(count)
        for found, same in zip(refined(refinement, shape, torch.float32), expected, strict=True):
            assert torch.equal(found, same)


@pytest.mark.parametrize("upsample", ["bilinear", "nearest"])
@pytest.mark.parametrize("width", [80, 88, 83])
def test_a_large_result_has_the_bits_of_small_ones(width: int, upsample: str) -> None:
    """It is stored past the caches where rows are whole vectors."""
    generator = torch.Generator().manual_seed(0)
    skip, mask, weight = (
        torch.randn(s, generator=generator) for s in ((9, 4, 100, width), (9, 3, 100, width), (2, 7, 3, 3))
    )
    found, _ = refinement.merge_upsample(skip, mask, weight, None, upsample, "zeros", False)
    for i in range(9):
        alone, _ = refinement.merge_upsample(skip[i : i + 1], mask[i : i + 1], weight, None, upsample, "zeros", False)
        assert torch.equal(found[i : i + 1], alone)


def every_other(x: Tensor) -> Tensor:
    """The same values, 2 apart in memory along the last dimension."""
    return x.repeat_interleave(2, dim=-1)[..., ::2]


def turned(x: Tensor) -> Tensor:
    """The same values, with the first two dimensions' strides swapped."""
    return x.transpose(0, 1).contiguous().transpose(0, 1) if x.ndim == 4 else every_other(x)


@pytest.mark.parametrize("change", [every_other, turned, channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_parameters_of_any_strides(dtype: torch.dtype, change: Callable[[Tensor], Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    randn = functools.partial(torch.randn, generator=generator)
    maps = [randn(2, channels, 6, 9).to(dtype) for channels in (40, 3)]
    parameters = [randn(*shape).to(dtype) for shape in ((5, 40, 3, 3), (5,), (4, 8, 3, 3), (4,))]
    strided = [change(x) if x.ndim == 4 or change is not channels_last else x for x in parameters]
    needs = [True] * 6

    def both_ways(skip_weight: Tensor, skip_bias: Tensor, merge_weight: Tensor, merge_bias: Tensor) -> list[Tensor]:
        arguments = (*maps, skip_weight, skip_bias, merge_weight, merge_bias, "bilinear", "replicate", True)
        out, skip, active = refinement.refine(*arguments)
        saved = (active, skip, *maps, skip_weight, merge_weight)
        return [out, *refinement.refine_backward(out, *saved, "bilinear", "replicate", False, needs)]

    for found, expected in zip(both_ways(*strided), both_ways(*parameters), strict=True):
        assert torch.equal(found, expected)


def in_child(results: Any) -> None:
    torch.set_num_threads(1)
    results.put([x.double().sum().item() for x in both_ways(torch.float32, torch.contiguous_format)])


def test_a_forked_child_with_one_thread_does_not_hang() -> None:
    torch.set_num_threads(3)
    expected = [x.double().sum().item() for x in both_ways(torch.float32, torch.contiguous_format)]
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    child = context.Process(target=in_child, args=(results,), daemon=True)
    child.start()
    try:
        torch.set_num_threads(1)
        assert results.get(timeout=20) == pytest.approx(expected)
    finally:
        child.kill()


@pytest.mark.parametrize("step", [1, 3])
def test_windows_of_any_value_read_nothing_outside(step: int) -> None:
    generator = torch.Generator().manual_seed(1)
    maps = [torch.randn(2, 3, *size, generator=generator) for size in SIZES]
    extremes = [-(2**63), -(2**40) - 1, -1, 0, 1, 2, 3, 2**40 + 1, 2**63 - 1]
    choice = torch.randint(0, len(extremes), (4, 4000), generator=generator)
    windows = list(torch.tensor(extremes)[choice])
    found = gather_windows.gather_windows(maps, *windows, 4, step)
    assert torch.equal(found, gather_reference.gather_windows(maps, *windows, 4, step))
    assert found.any()
    arguments = (*windows, 2, *zip(*SIZES, strict=True), False, [True, False, True], step)
    grad = torch.ones_like(found)  # whose sums are exact
    for one, other in zip(
        gather_windows.gather_windows_backward(grad, *arguments),
        gather_reference.gather_windows_backward(grad, *arguments),
        strict=True,
    ):
        assert torch.equal(one, other)


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_samples_within_rounding_of_the_limit_are_decided_as_in_fp64() -> None:
    generator = torch.Generator().manual_seed(2)
    limit = torch.tensor(logit(0.2))
    beside = [limit + i * torch.finfo(torch.float32).eps for i in range(-3, 4)]
    extremes = [-math.inf, -3e38, -20.0, 20.0, 3e38, math.inf, math.nan]
    values = torch.tensor([*beside * 3, *extremes])
    logits = values[torch.randint(0, len(values), (40, 48, 48), generator=generator)]
    logits[:20] = limit + (logits[:20] > limit) * 1e-6 - 5e-7  # and windows without extremes
    windows = [torch.randint(low, high, (40,), generator=generator) for low, high in ((0, 2), (-1, 8), (-1, 8))]
    arguments = (logits, *windows, (90, 130), [0.4, 1.1], 0.2)
    for found, expected in zip(
        encode_windows.encode_windows(*arguments), encode_reference.encode_windows(*arguments), strict=True
    ):
        assert torch.equal(found, expected)


def test_what_it_refuses() -> None:
    assert device.BACKEND.refusal(torch.device("cpu"), torch.bfloat16) is None
    assert "maps must be on a cpu device on backend 'cpu', got cuda:0" in str(
        device.BACKEND.refusal(torch.device("cuda", 0), torch.float32)
    )
    assert "on backend 'cpu', got torch.float8_e5m2" in str(
        device.BACKEND.refusal(torch.device("cpu"), torch.float8_e5m2)
    )


# Arguments that the backend never gives.


@pytest.mark.parametrize(
    "view",
    [
        None,
        1,
        (0, 2, (1, 1, 1, 1)),
        (0, 2, (1, 1, 1, 1), (1, 1, 1)),
        (0, 2, (1,) * 5, (1,) * 5),
        (0, 2, [1, 1, 1, 1], (1, 1, 1, 1)),
        (0, 5, (1, 1, 1, 1), (1, 1, 1, 1)),
        (0, -1, (1, 1, 1, 1), (1, 1, 1, 1)),
        (-1, 2, (1, 1, 1, 1), (1, 1, 1, 1)),
        (0, 2, (1, 1, 1, 2**63), (1, 1, 1, 1)),
        (0, 2, (1, 1, 1, "1"), (1, 1, 1, 1)),
    ],
    ids=str,
)
def test_what_is_no_view_of_a_tensor_is_refused(view: Any) -> None:
    weight = native.view(torch.zeros(1, 1, 3, 3))
    out = native.view(torch.zeros(1, 1, 1, 1))
    with pytest.raises(TypeError, match="incompatible function arguments"):
        _cpu.feature_forward(feature=view, weight=weight, bias=None, zeros=True, out=out, threads=1)


def test_the_compiled_functions_take_names_only() -> None:
    with pytest.raises(TypeError, match="incompatible function arguments"):
        _cpu.gather_windows([], native.WindowsView(0, 0, 0, 0, 0), 1, None, 1)  # type: ignore[misc, arg-type]


# The choice of an instruction set. It is made once for a process.


def isa_of(variable: str) -> subprocess.CompletedProcess[str]:
    program = "from sharpmask_kernels.backends.cpu import device; print(device.module().isa())"
    environment = {**os.environ, "SHARPMASK_CPU_ISA": variable}
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)


def test_the_best_instruction_set_runs_unless_one_is_named() -> None:
    usable = device.module().build_info()["isas"].split(", ")
    assert isa_of("").stdout.strip() == usable[-1]
    for isa in usable:
        assert isa_of(isa).stdout.strip() == isa


def test_an_unknown_instruction_set_is_refused() -> None:
    first_isa = device.module().build_info()["isas"].split(", ")[0]
    done = isa_of("mmx")
    assert done.returncode != 0
    assert f"SHARPMASK_CPU_ISA must be one of those that run here ({first_isa}" in done.stderr
    assert "got 'mmx'" in done.stderr


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
def test_no_inline_function_is_shared_by_instruction_sets() -> None:
    """The linker would keep one copy, perhaps one that this processor cannot run."""
    listed = subprocess.run(["nm", "-C", device.module().__file__], capture_output=True, text=True, check=True).stdout
    names = [line.split(maxsplit=2)[2] for line in listed.splitlines() if " W " in line]
    # Of the standard library and the shared headers, the files compiled once have copies of their own.
    suspects = [name for name in names if name.startswith("sharpmask::") or "void sharpmask::" in name]
    assert all(re.search(r"sharpmask::(baseline|avx2|avx512|neon)::", name) for name in suspects), suspects
