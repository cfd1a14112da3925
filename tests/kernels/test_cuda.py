"""What is particular to the CUDA kernels: schedules of threads, plans of shared memory, wide loads, launches."""

from __future__ import annotations

import collections
import itertools
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sharpmask_kernels import ops
from sharpmask_kernels.backends import cuda, reference

from .. import emulator
from ..contract.inputs import (
    LAYOUTS,
    MODES,
    SCATTERED,
    TOLERANCE,
    Cascade,
    Random,
    channels_last,
    contiguous,
    windows_at,
)
from ..emulator import schedules

pytestmark = pytest.mark.skipif(not cuda.emulated(), reason="gpu: needs the emulator, which stands in for it")

KB = 1 << 10
# Shared memory of a block and of a multiprocessor, by compute capability.
SHARED = {75: (64, 64), 80: (163, 164), 86: (99, 100), 90: (227, 228)}
SCHEDULES = [emulator.FORWARD, emulator.REVERSE, 0, 1, 2]


def refined(cascade: Cascade, backend: Any, **options: Any) -> Tensor:
    """refine_windows of a backend's module, past the checks."""
    upsample, padding_mode = options.get("upsample", "bilinear"), options.get("padding_mode", "replicate")
    threshold = options.get("threshold")
    convs = [len(stage) for stage in cascade.stages]
    weights, biases = zip(*itertools.chain(*cascade.stages, [cascade.head]), strict=True)
    maps = list(itertools.chain(*cascade.horizontals))
    out = ops.empty_windows(cascade.encoding, len(convs), threshold).fill_(77)
    modes = (convs, upsample, padding_mode, threshold)
    backend.refine_windows(cascade.encoding, maps, *cascade.windows[1:], list(weights), list(biases), *modes, out)
    return out


def assert_agree(cascade: Cascade, **options: Any) -> None:
    found, expected = refined(cascade, cuda, **options), refined(cascade, reference, **options)
    limit = 4 * TOLERANCE[cascade.encoding.dtype]  # both round
    torch.testing.assert_close(found, expected, rtol=0, atol=limit * float(expected.abs().max()))


def gathered() -> None:
    for layout, (size, step) in itertools.product(LAYOUTS[:2], [(3, 1), (4, 2)]):
        random = Random(torch.float32)
        maps = [layout(random(2, 4, 9, 40)), layout(random(2, 4, 21, 4))]
        windows = windows_at(*SCATTERED * 21)[1:]  # more than a block looks at at a time
        out = cuda.gather_windows(maps, *windows, size, step)
        assert torch.equal(out, reference.gather_windows(maps, *windows, size, step))
        backward = (random(*out.shape), *windows, 2, [9, 21], [40, 4], layout is channels_last, [True, True], step)
        for x, y in zip(
            cuda.gather_windows_backward(*backward), reference.gather_windows_backward(*backward), strict=True
        ):
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-4)


def both_cascades(**options: Any) -> list[Cascade]:
    """Small ones whose plans differ a lot with the shared memory that there is."""
    deep, wide = {"size": 6, "widths": (3, 3, 2), "convs": 2}, {"size": 10, "widths": (2, 2, 4)}
    return [Cascade(torch.float32, count=3, **shape, **options) for shape in (deep, wide)]


def refined_both_ways() -> None:
    for cascade in both_cascades():
        assert_agree(cascade, padding_mode="zeros")
    # Tiles shared by several threads.
    assert_agree(Cascade(torch.float32, count=4, size=2, widths=(5, 16, 3)), upsample="nearest")


def encoded() -> None:
    logits, windows = Random(torch.float32)(13, 16, 16), windows_at(*SCATTERED)[2:]
    given = (logits, *windows, [19, 33], [0.5, 1.3], 0.3)
    for x, y in zip(cuda.encode_windows(*given), reference.encode_windows(*given), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules(schedule: int) -> None:
    """Whatever the order of the threads. Few blocks: each has several windows."""
    with emulator.machine(schedule, multiprocessors=1):
        gathered()
        encoded()
        refined_both_ways()
    for shared in (7, 12):
        sizes = {"shared_per_block": shared * KB, "shared_per_multiprocessor": (shared + 1) * KB}
        with emulator.machine(schedule, multiprocessors=1, **sizes):
            for cascade in both_cascades():
                assert_agree(cascade)


@pytest.mark.slow
def test_nothing_is_read_or_written_outside() -> None:
    """These tests and the contract's, with the addresses and the arithmetic of every kernel checked."""
    done = schedules.run("1", sanitized=True)
    assert done.returncode == 0, done.stdout


# Plans.

PAPER = (10, 32, [1, 1, 1, 1], [16, 8, 4, 2, 1])


def footprint(shape: tuple[Any, ...], shared: tuple[int, int], *modes: bool) -> dict[str, Any]:
    native = cuda.native()
    found: dict[str, Any] = native.refine_windows_footprint(native.Cascade(*shape, *modes), *(s * KB for s in shared))
    return found


@pytest.mark.parametrize("capability", SHARED)
@pytest.mark.parametrize("modes", list(itertools.product([False, True], repeat=2)))
def test_the_papers_cascade_fits(capability: int, modes: tuple[bool, bool]) -> None:
    found = footprint(PAPER, SHARED[capability], *modes)
    blocks = SHARED[capability][1] * KB // (found["shared_bytes"] + KB)
    assert blocks >= {75: 0, 80: 2, 86: 1, 90: 2}[capability]
    assert found["shared_bytes"] <= SHARED[capability][0] * KB


@pytest.mark.parametrize("capability", SHARED)
def test_the_papers_cascade(capability: int) -> None:
    cascade = Cascade(torch.float32, count=1, size=10, widths=(32, 16, 8, 4, 2))
    per_block, per_multiprocessor = (n * KB for n in SHARED[capability])
    with emulator.machine(shared_per_block=per_block, shared_per_multiprocessor=per_multiprocessor):
        assert_agree(cascade)


@pytest.mark.parametrize("capability", [80, 86, 90])
def test_the_released_cascade_fits(capability: int) -> None:
    """Two convolutions a stage. 88 KB at least: too much for compute capability 7.5."""
    released = (10, 32, [2, 2, 2, 2], [32, 16, 16, 8, 8, 4, 4, 2, 1])
    assert footprint(released, SHARED[capability], True, False)["shared_bytes"] <= SHARED[capability][0] * KB


@pytest.mark.parametrize("shared", [7, 8, 10, 12, 16])
def test_any_plan_gives_the_same(shared: int) -> None:
    """Bands of different heights, weights that stay and weights that do not."""
    for cascade in both_cascades():
        expected = refined(cascade, cuda)
        with emulator.machine(shared_per_block=shared * KB, shared_per_multiprocessor=(shared + 1) * KB):
            found = refined(cascade, cuda)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_plans_differ() -> None:
    """The tests above have something to compare."""
    deep, wide = (6, 3, [2, 2], [3, 3, 3, 2, 1]), (10, 2, [1, 1], [2, 4, 1])
    found = [footprint(shape, (n, n + 1), False, False) for shape in (deep, wide) for n in (7, 8, 10, 12, 16)]
    assert len({(f["resident_weights"], f["banded_layers"], f["band_rows"]) for f in found}) >= 6


def test_what_does_not_fit_is_refused() -> None:
    cascade = Cascade(torch.float32, count=1, size=4, widths=(40, 40), convs=1)
    with (
        emulator.machine(shared_per_block=20 * KB),
        pytest.raises(ValueError, match=r"stages must fit into the shared memory of a block .* 20480 bytes .* got \d+"),
    ):
        refined(cascade, cuda)
    with pytest.raises(ValueError, match="side of windows must be at most 1024 on backend 'cuda', got 1200"):
        refined(Cascade(torch.float32, count=1, size=600, widths=(1, 1)), cuda)


# Loads and launches.


@pytest.mark.parametrize("dtype", cuda.DTYPES, ids=str)
@pytest.mark.parametrize("widths", [(4, 16, 8), (3, 4, 2), (2, 6, 12)])
@pytest.mark.parametrize("shift", [0, 1])
def test_wide_loads_of_maps(dtype: torch.dtype, widths: tuple[int, ...], shift: int) -> None:
    """channels_last maps, aligned and not; windows over every border."""

    def shifted(x: Tensor) -> Tensor:
        whole = torch.full((x.numel() + shift,), float("nan"), dtype=dtype)
        batch, channels, height, width = x.shape
        return whole[shift:].view(batch, height, width, channels).permute(0, 3, 1, 2).copy_(x)

    for upsample, padding_mode in MODES[1::2]:
        cascade = Cascade(dtype, count=5, size=2, widths=widths)
        cascade.horizontals = [[shifted(m) for m in levels] for levels in cascade.horizontals]
        cascade.horizontals = [[m[..., :-1] for m in levels] for levels in cascade.horizontals]  # odd widths
        options = {"upsample": upsample, "padding_mode": padding_mode}
        found = refined(cascade, cuda, **options)
        exact = Cascade(torch.float32, count=5, size=2, widths=widths)
        exact.encoding, exact.head = cascade.encoding.float(), _widened(cascade.head)
        exact.stages = [[_widened(conv) for conv in stage] for stage in cascade.stages]
        exact.horizontals = [[m.float() for m in levels] for levels in cascade.horizontals]
        expected = refined(exact, reference, **options)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("dtype", cuda.DTYPES, ids=str)
def test_how_many_bits_a_load_of_maps_has(dtype: torch.dtype) -> None:
    """128 in channels_last; but two channels of two neighbours, all that a thread has of a row, may be less."""
    sides, widths, element = (2, 4, 8, 16), (16, 8, 4, 2), dtype.itemsize
    cascade = Cascade(dtype, count=1, size=2, widths=(3, *widths))
    cascade.windows = windows_at((0, 0, 1, 1))  # all inside
    values = [side * side * channels for side, channels in zip(sides, widths, strict=True)]
    for layout, bytes_of_stages in [(channels_last, [16, 16, 16, min(16, 4 * element)]), (contiguous, [element] * 4)]:
        cascade.horizontals = [[layout(m) for m in levels] for levels in cascade.horizontals]
        emulator.map_loads()
        refined(cascade, cuda)
        expected: collections.Counter[int] = collections.Counter()
        for count, size in zip(values, bytes_of_stages, strict=True):
            expected[size] += count * element // size
        assert emulator.map_loads() == expected
    maps, windows = Random(dtype)(1, 8, 6, 6), windows_at((0, 0, 1, 1))[1:]
    for layout, size in [(channels_last, 16), (contiguous, element)]:
        cuda.gather_windows([layout(maps)], *windows, 4, 1)
        assert emulator.map_loads() == {size: 4 * 4 * 8 * element // size}


def _widened(conv: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor | None]:
    weight, bias = conv
    return weight.float(), None if bias is None else bias.float()


def test_more_maps_than_one_launch_takes() -> None:
    scales = 70
    random = Random(torch.float32)
    maps = [random(2, 3, 4, 5) for _ in range(scales)]
    cells = [(n % 2, (7 * n) % (scales + 2) - 1, n % 4 - 1, n % 3) for n in range(90)]  # two scales that there are not
    windows = windows_at(*cells)[1:]
    assert torch.equal(cuda.gather_windows(maps, *windows, 2, 1), reference.gather_windows(maps, *windows, 2, 1))
    cascade = Cascade(torch.float32, count=90, size=1, widths=(2, 3, 2))
    cascade.windows = windows_at(*cells)
    cascade.horizontals = [[random(2, 3, 4, 5), random(2, 2, 8, 10)] for _ in range(scales)]
    assert_agree(cascade)


def test_windows_of_any_value_read_nothing_outside() -> None:
    extremes = [-(2**63), -(2**40) - 1, -1, 0, 1, 2, 3, 2**40 + 1, 2**63 - 1]
    cells = list(itertools.product((0, 1), (0, -1, 2**62), extremes[::2], extremes))
    maps = Random(torch.float32)(2, 2, 3, 5)
    windows = windows_at(*cells)[1:]
    assert torch.equal(cuda.gather_windows([maps], *windows, 3, 2), reference.gather_windows([maps], *windows, 3, 2))
    cascade = Cascade(torch.float32, count=len(cells), size=1, widths=(1, 2))
    cascade.windows = windows_at(*cells)
    assert_agree(cascade)


@pytest.mark.parametrize(
    "change", [lambda x: x.t().contiguous().t(), lambda x: x.expand(3, 3)], ids=["turned", "expanded"]
)
def test_weights_of_any_strides(change: Callable[[Tensor], Tensor]) -> None:
    cascade = Cascade(torch.float32, count=2, size=2, widths=(3, 2))
    weight, bias = cascade.stages[0][0]
    kernel = change(weight[0, 0] if change(torch.eye(3)).stride() != (0, 1) else weight[0, 0, :1])
    cascade.stages[0][0] = (kernel.expand(*weight.shape[:2], 3, 3), bias)
    assert_agree(cascade)


def test_a_threshold_is_a_bound_on_the_double() -> None:
    for x in (-1.3862943611198906, 0.1, 1e-50, 0.0, 3.0):
        below = cuda._float_below(x)
        assert below <= x < float(torch.nextafter(torch.tensor(below), torch.tensor(float("inf"))))


# The compiled module and the emulator themselves.


def test_it_says_why_it_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "emulated", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cuda.unavailable.__wrapped__() == "PyTorch finds no CUDA device"
    device = torch.device("cpu")
    assert cuda.refusal(device, torch.float32) == "maps must be on a CUDA device on backend 'cuda', got cpu"
    monkeypatch.setattr(cuda, "_load", lambda: "not compiled at installation: no nvcc found")
    assert cuda.unavailable.__wrapped__() == "not compiled at installation: no nvcc found"
    with pytest.raises(RuntimeError, match="no nvcc found"):
        cuda.native()


KERNELS = ["right", "missing_barrier", "wrong_lane", "swapped_lanes", "missing_lane", "shared_bounds", "global_bounds"]


@pytest.fixture(scope="module")
def self_test(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("emulator") / "self_test"
    sources = [str(emulator.HERE / name) for name in ("emulator.cpp", "self_test.cpp")]
    command = [*emulator.compiler(), "-std=c++17", "-g1", *emulator.SANITIZE, *sources, "-o", str(program)]
    subprocess.run(command, check=True)
    return program


@pytest.mark.parametrize("kernel", [*KERNELS, "split_barrier"])
def test_the_emulator_sees_planted_faults(self_test: Path, kernel: str) -> None:
    for schedule in SCHEDULES:
        done = subprocess.run([self_test, kernel, str(schedule)], capture_output=True, text=True)
        assert (done.returncode == 0) == (kernel == "right"), done.stdout + done.stderr
        assert ("AddressSanitizer: heap-buffer-overflow" in done.stderr) == kernel.endswith("bounds")
