"""The memory that the C++ kernels take, byte for byte or within a bound."""

from __future__ import annotations

import functools

import pytest
import torch

from bench import memory
from bench.workloads import LEVELS, refinement
from sharpmask_kernels.backends.cpu import device as cpu

PHOTO = (480, 640)


@pytest.mark.parametrize("threads", [1, 2])
def test_refine_windows_takes_less_than_a_megabyte_a_thread(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        taken = memory.extra_of_refine_windows(200, PHOTO, "cpu")
    finally:
        torch.set_num_threads(before)
    # Looking now and then has seen at least the planes of one window's last convolution, 2 channels of 80x80.
    assert 2 * 80 * 80 * 4 < taken < threads * 1_000_000


def test_the_measurement_sees_what_others_take() -> None:
    """64 windows at a time, of which the last stage alone has 2 channels of 160x160."""
    assert memory.extra_of_refine_windows(64, PHOTO, "reference") > 64 * 2 * 160 * 160 * 4


@pytest.mark.parametrize("level", range(len(LEVELS)))
@pytest.mark.parametrize("op", ["refine", "merge_upsample", "add_upsample"])
def test_backward_keeps_the_skip_and_one_bit_per_activation(op: str, level: int) -> None:
    batch = 3
    side, _, skip, _, out = LEVELS[level]
    workload = refinement.workload(op, level, batch)
    module = workload.module(torch.device("cpu"))
    inputs = [x.requires_grad_() for x in workload.inputs(torch.randn)]
    kept = memory.saved(functools.partial(module.op, "cpu", *inputs), [*inputs, *module.parameters()])
    bits = batch * out * side * -(-side // 8)
    assert kept == bits + (4 * batch * skip * side * side if op == "refine" else 0)


def test_a_batch_of_32_keeps_less_than_7_megabytes() -> None:
    assert memory.saved_by_refine(32, "cpu") < 7_000_000
    assert memory.saved_by_refine(32, None) == 21_504_000  # the joined maps and both activations


def test_inference_keeps_nothing() -> None:
    workload = refinement.workload("refine", 3, 1)
    module = workload.module(torch.device("cpu")).requires_grad_(False)
    assert memory.saved(functools.partial(module.op, "cpu", *workload.inputs(torch.randn)), []) == 0
    assert cpu.unavailable() is None
