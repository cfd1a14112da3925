"""What is particular to the CUDA kernels: schedules of threads, plans of shared memory, wide loads, launches."""

from __future__ import annotations

import collections
import contextlib
import copy
import dataclasses
import itertools
import re
import subprocess
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sharpmask_kernels import registry
from sharpmask_kernels.backends.cuda import device as cuda
from sharpmask_kernels.backends.cuda import encode_windows, gather_windows, refine_windows
from sharpmask_kernels.backends.reference import encode_windows as encode_reference
from sharpmask_kernels.backends.reference import gather_windows as gather_reference
from sharpmask_kernels.ops.refine_windows import empty_windows

from .. import emulator
from ..contract.inputs import (
    LAYOUTS,
    MODES,
    SCATTERED,
    TOLERANCE,
    Random,
    TopDownPass,
    channels_last,
    contiguous,
    windows_at,
)
from ..emulator import schedules

pytestmark = pytest.mark.skipif(not cuda.emulated(), reason="gpu: needs the emulator, which stands in for it")

KB = 1 << 10
# Shared memory of a block and of a multiprocessor in KB, by compute capability (CUDA C++ Programming Guide).
SHARED = {75: (64, 64), 80: (163, 164), 86: (99, 100), 89: (99, 100), 90: (227, 228), 100: (227, 228), 120: (99, 100)}
PAPER: dict[str, Any] = {"size": 10, "widths": (32, 16, 8, 4, 2)}
RELEASED = {**PAPER, "convs": 2}
# Small top-down passes, and sizes of shared memory with which their plans differ a lot.
SMALL: list[tuple[dict[str, Any], tuple[int, ...]]] = [
    ({"size": 10, "widths": (2, 2, 4)}, (7, 10, 12)),
    ({"size": 2, "widths": (36, 20, 3)}, (16, 26)),
    ({"size": 6, "widths": (2, 2, 3, 4), "convs": 2}, (15, 16, 19)),
]
SCHEDULES = [emulator.FORWARD, emulator.REVERSE, 0, 1, 2]


def refined(top_down: TopDownPass, backend: str = "cuda", **options: Any) -> Tensor:
    """refine_windows of a backend, past the checks."""
    upsample, padding_mode = options.get("upsample", "bilinear"), options.get("padding_mode", "replicate")
    threshold = options.get("threshold")
    convs = [len(stage) for stage in top_down.stages]
    weights, biases = zip(*itertools.chain(*top_down.stages, [top_down.head]), strict=True)
    maps = list(itertools.chain(*top_down.horizontals))
    out = empty_windows(top_down.encoding, len(convs), threshold).fill_(77)
    modes = (convs, upsample, padding_mode, threshold)
    room = registry.room(backend, "refine_windows")
    room.refine_windows(top_down.encoding, maps, *top_down.windows[1:], list(weights), list(biases), *modes, out)
    return out


def assert_agree(top_down: TopDownPass, **options: Any) -> None:
    found, expected = (refined(top_down, backend, **options) for backend in ("cuda", "reference"))
    limit = 4 * TOLERANCE[top_down.encoding.dtype]  # both round
    torch.testing.assert_close(found, expected, rtol=0, atol=limit * float(expected.abs().max()))


def gathered() -> None:
    for layout, (size, step) in itertools.product(LAYOUTS[:2], [(3, 1), (4, 2)]):
        random = Random(torch.float32)
        maps = [layout(random(2, 4, 9, 40)), layout(random(2, 4, 21, 4))]
        windows = windows_at(*SCATTERED * 21)[1:]  # more than a block looks at at a time
        out = gather_windows.gather_windows(maps, *windows, size, step)
        assert torch.equal(out, gather_reference.gather_windows(maps, *windows, size, step))
        backward = (random(*out.shape), *windows, 2, [9, 21], [40, 4], layout is channels_last, [True, True], step)
        for x, y in zip(
            gather_windows.gather_windows_backward(*backward),
            gather_reference.gather_windows_backward(*backward),
            strict=True,
        ):
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-4)


def gpu(per_block: int, per_multiprocessor: int | None = None) -> dict[str, int]:
    """A GPU with this much shared memory in KB, as arguments of emulator.machine."""
    both = (per_block, per_multiprocessor or per_block + 1)
    return dict(zip(("shared_per_block", "shared_per_multiprocessor"), (n * KB for n in both), strict=True))


def refined_small() -> None:
    for shape, _ in SMALL:
        assert_agree(TopDownPass(torch.float32, count=3, **shape), padding_mode="zeros")
    for dtype in (torch.float16, torch.bfloat16):
        assert_agree(TopDownPass(dtype, count=3, size=5, widths=(8, 6, 2)))
    # Tiles shared by several threads.
    assert_agree(TopDownPass(torch.float32, count=4, size=2, widths=(5, 16, 3)), upsample="nearest")


def encoded() -> None:
    logits, windows = Random(torch.float32)(13, 16, 16), windows_at(*SCATTERED)[2:]
    given = (logits, *windows, [19, 33], [0.5, 1.3], 0.3)
    for x, y in zip(encode_windows.encode_windows(*given), encode_reference.encode_windows(*given), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules(schedule: int) -> None:
    """The order of the threads does not matter. There are few blocks, so that each has several windows."""
    with emulator.machine(schedule, multiprocessors=1):
        gathered()
        encoded()
        refined_small()
    with emulator.machine(schedule, multiprocessors=1, **gpu(6)):
        assert_agree(TopDownPass(torch.bfloat16, count=3, size=5, widths=(8, 6, 2)))
    for shape, sizes in SMALL:
        with emulator.machine(schedule, multiprocessors=1, **gpu(sizes[0])):
            assert_agree(TopDownPass(torch.float32, count=3, **shape))


@pytest.mark.slow
def test_nothing_is_read_or_written_outside() -> None:
    """These tests and the contract's pass with the addresses and the arithmetic of every kernel checked."""
    done = schedules.run("1", sanitized=True)
    assert done.returncode == 0, done.stdout


# Plans.


def footprint(shape: dict[str, Any], gpu: dict[str, int], upsample: str, padding_mode: str) -> dict[str, Any]:
    widths, convs = shape["widths"], shape.get("convs", 1)
    outs = [k for before, after in itertools.pairwise(widths) for k in [before] * (convs - 1) + [after]]
    native = cuda.module()
    top_down_pass = native.TopDownPass(
        size=shape["size"],
        channels=widths[0],
        convs=[convs] * (len(widths) - 1),
        out_channels=[*outs, 1],
        nearest=upsample == "nearest",
        zeros=padding_mode == "zeros",
    )
    found: dict[str, Any] = native.refine_windows_footprint(top_down_pass, **gpu)
    return found


@pytest.mark.parametrize("capability", SHARED)
@pytest.mark.parametrize(("upsample", "padding_mode"), MODES)
def test_the_shapes_of_models_fit(capability: int, upsample: str, padding_mode: str) -> None:
    per_block, per_multiprocessor = (n * KB for n in SHARED[capability])
    for shape in PAPER, RELEASED:
        found = footprint(shape, gpu(*SHARED[capability]), upsample, padding_mode)["shared_bytes"]
        assert found <= per_block
        assert per_multiprocessor // (found + KB) >= (2 if capability in (80, 90, 100) else 1)


@pytest.mark.parametrize("capability", SHARED)
@pytest.mark.parametrize("shape", [PAPER, RELEASED], ids=["paper", "released"])
def test_the_shapes_of_models(capability: int, shape: dict[str, Any]) -> None:
    with emulator.machine(**gpu(*SHARED[capability])):
        assert_agree(
            TopDownPass(torch.float32, count=1, **shape), upsample="nearest" if shape is RELEASED else "bilinear"
        )


@pytest.mark.parametrize(("shape", "shared"), [(shape, n) for shape, sizes in SMALL for n in sizes])
def test_any_plan_gives_the_same(shape: dict[str, Any], shared: int) -> None:
    """Bands have different heights; weights stay, or come layer by layer, in one round or several."""
    for upsample, padding_mode in MODES[::3]:
        top_down, modes = (
            TopDownPass(torch.float32, count=3, **shape),
            {"upsample": upsample, "padding_mode": padding_mode},
        )
        expected = refined(top_down, **modes)
        with emulator.machine(**gpu(shared + 2 * (upsample == "nearest"))):
            found = refined(top_down, **modes)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_plans_differ() -> None:
    """The tests above have something to compare."""
    found = [footprint(shape, gpu(n), "bilinear", "replicate") for shape, sizes in SMALL for n in sizes]
    assert {f["rounds"] for f in found} == {0, 1, 2, 4}
    assert {f["banded_layers"] for f in found} == {1, 2, 5}
    assert {f["band_rows"] for f in found} >= {8, 16, 24}


@pytest.mark.parametrize("capability", SHARED)
def test_what_does_not_fit_a_gpu_is_refused(capability: int) -> None:
    per_block = SHARED[capability][0] * KB
    expected = r"stages must fit into the shared memory of a block on backend 'cuda': (\d+) bytes on this GPU; "
    with (
        emulator.machine(**gpu(*SHARED[capability])),
        pytest.raises(ValueError, match=expected + r"got (\d+) bytes of weights and activations$") as error,
    ):
        TopDownPass(torch.float32, count=1, size=10, widths=(512, 16))(backend="cuda")
    limit, needed = (int(n) for n in re.findall(r"\d+", str(error.value)))
    assert limit == per_block < needed


def test_what_fits_no_gpu_is_refused() -> None:
    with pytest.raises(ValueError, match="side of windows must be at most 1024 on backend 'cuda', got 1200"):
        refined(TopDownPass(torch.float32, count=1, size=600, widths=(1, 1)))


# Loads and launches.


@pytest.mark.parametrize("dtype", cuda.BACKEND.dtypes, ids=str)
@pytest.mark.parametrize("widths", [(4, 16, 8), (3, 4, 2), (2, 6, 12)])
@pytest.mark.parametrize("shift", [0, 1])
def test_wide_loads_of_maps(dtype: torch.dtype, widths: tuple[int, ...], shift: int) -> None:
    """channels_last maps, aligned and not; windows over every border."""

    def shifted(x: Tensor) -> Tensor:
        whole = torch.full((x.numel() + shift,), float("nan"), dtype=dtype)
        batch, channels, height, width = x.shape
        return whole[shift:].view(batch, height, width, channels).permute(0, 3, 1, 2).copy_(x)

    for upsample, padding_mode in MODES[1::2]:
        top_down = TopDownPass(dtype, count=5, size=2, widths=widths)
        top_down.horizontals = [[shifted(m) for m in levels] for levels in top_down.horizontals]
        top_down.horizontals = [[m[..., :-1] for m in levels] for levels in top_down.horizontals]  # odd widths
        options = {"upsample": upsample, "padding_mode": padding_mode}
        with emulator.machine(matrix_unit=0):
            found = refined(top_down, **options)
        expected = refined(exactly(top_down), "reference", **options)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("dtype", cuda.BACKEND.dtypes, ids=str)
def test_how_many_bits_a_load_of_maps_has(dtype: torch.dtype) -> None:
    """128 in channels_last, except where all that a thread reads of a row (two channels of two cells) is less."""
    sides, widths, element = (2, 4, 8, 16), (16, 8, 4, 2), dtype.itemsize
    top_down = TopDownPass(dtype, count=1, size=2, widths=(3, *widths))
    top_down.windows = windows_at((0, 0, 1, 1))  # all inside
    values = [side * side * channels for side, channels in zip(sides, widths, strict=True)]
    for layout, bytes_of_stages in [(channels_last, [16, 16, 16, min(16, 4 * element)]), (contiguous, [element] * 4)]:
        top_down.horizontals = [[layout(m) for m in levels] for levels in top_down.horizontals]
        emulator.map_loads()
        with emulator.machine(matrix_unit=0):
            refined(top_down)
        expected: collections.Counter[int] = collections.Counter()
        for count, size in zip(values, bytes_of_stages, strict=True):
            expected[size] += count * element // size
        assert emulator.map_loads() == expected
    maps, windows = Random(dtype)(1, 8, 6, 6), windows_at((0, 0, 1, 1))[1:]
    for layout, size in [(channels_last, 16), (contiguous, element)]:
        gather_windows.gather_windows([layout(maps)], *windows, 4, 1)
        assert emulator.map_loads() == {size: 4 * 4 * 8 * element // size}


def exactly(top_down: TopDownPass) -> TopDownPass:
    """The same numbers in fp32."""
    exact = copy.copy(top_down)
    exact.encoding, exact.head = top_down.encoding.float(), _widened(top_down.head)
    exact.stages = [[_widened(conv) for conv in stage] for stage in top_down.stages]
    exact.horizontals = [[m.float() for m in levels] for levels in top_down.horizontals]
    return exact


def _widened(conv: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor | None]:
    weight, bias = conv
    return weight.float(), None if bias is None else bias.float()


@pytest.mark.parametrize("threshold", [None, 0.3])
def test_out_may_begin_anywhere(threshold: float | None) -> None:
    """Logits are written two at a time."""
    top_down = TopDownPass(torch.float32)
    expected = refined(top_down, threshold=threshold)
    out = expected.new_zeros(expected.numel() + 1)[1:].view_as(expected)
    top_down(out=out, threshold=threshold, backend="cuda", padding_mode="replicate")
    assert torch.equal(out, expected)


def test_more_maps_than_one_launch_takes() -> None:
    scales = 70
    random = Random(torch.float32)
    maps = [random(2, 3, 4, 5) for _ in range(scales)]
    cells = [(n % 2, (7 * n) % (scales + 2) - 1, n % 4 - 1, n % 3) for n in range(90)]  # two scales that there are not
    windows = windows_at(*cells)[1:]
    assert torch.equal(
        gather_windows.gather_windows(maps, *windows, 2, 1), gather_reference.gather_windows(maps, *windows, 2, 1)
    )
    top_down = TopDownPass(torch.float32, count=90, size=1, widths=(2, 3, 2))
    top_down.windows = windows_at(*cells)
    top_down.horizontals = [[random(2, 3, 4, 5), random(2, 2, 8, 10)] for _ in range(scales)]
    assert_agree(top_down)


def test_windows_of_any_value_read_nothing_outside() -> None:
    extremes = [-(2**63), -(2**40) - 1, -1, 0, 1, 2, 3, 2**40 + 1, 2**63 - 1]
    cells = list(itertools.product((0, 1), (0, -1, 2**62), extremes[::2], extremes))
    maps = Random(torch.float32)(2, 2, 3, 5)
    windows = windows_at(*cells)[1:]
    assert torch.equal(
        gather_windows.gather_windows([maps], *windows, 3, 2), gather_reference.gather_windows([maps], *windows, 3, 2)
    )
    top_down = TopDownPass(torch.float32, count=len(cells), size=1, widths=(1, 2))
    top_down.windows = windows_at(*cells)
    assert_agree(top_down)


@pytest.mark.parametrize(
    "change", [lambda x: x.t().contiguous().t(), lambda x: x.expand(3, 3)], ids=["turned", "expanded"]
)
def test_weights_of_any_strides(change: Callable[[Tensor], Tensor]) -> None:
    top_down = TopDownPass(torch.float32, count=2, size=2, widths=(3, 2))
    weight, bias = top_down.stages[0][0]
    kernel = change(weight[0, 0] if change(torch.eye(3)).stride() != (0, 1) else weight[0, 0, :1])
    top_down.stages[0][0] = (kernel.expand(*weight.shape[:2], 3, 3), bias)
    assert_agree(top_down)


def test_a_threshold_is_a_bound_on_the_double() -> None:
    for x in (-1.3862943611198906, 0.1, 1e-50, 0.0, 3.0):
        below = refine_windows._float_below(x)
        assert below <= x < float(torch.nextafter(torch.tensor(below), torch.tensor(float("inf"))))


# Streams, devices and errors. What only a GPU can show is in test_gpu.py.


def test_the_stream_is_the_current_one_of_the_tensors_device(monkeypatch: pytest.MonkeyPatch) -> None:
    current = [0]

    @contextlib.contextmanager
    def device_of(x: Any) -> Iterator[None]:
        current.append(x.device)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=100 + current[-1]))
    run = cuda.on_device(lambda maps, size, stream: (size, stream, current[-1]))
    assert run([SimpleNamespace(is_cuda=True, device=3)], 7) == (7, 103, 3)
    assert current == [0]


def test_kernels_are_not_waited_for() -> None:
    """Nor is memory allocated or freed. The capture of a CUDA graph would allow none of this."""
    sources = "".join(path.read_text() for path in (emulator.CSRC / "cuda").rglob("*.*"))
    assert set(re.findall(r"\b(cuda[A-Z]\w*)\(", sources)) == {
        "cudaGetDevice",
        "cudaDeviceGetAttribute",
        "cudaFuncGetAttributes",
        "cudaFuncSetAttribute",
        "cudaOccupancyMaxActiveBlocksPerMultiprocessor",
        "cudaGetLastError",
        "cudaGetErrorString",
    }


def test_pytorch_only_allocates_memory() -> None:
    """No value of a tensor is read on the host, which would wait for the device."""

    class Asked(TorchDispatchMode):
        def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            names.add(op.overloadpacket.__name__)
            return op(*args, **(kwargs or {}))

    names: set[str] = set()
    top_down, windows = TopDownPass(torch.float32), windows_at(*SCATTERED)[1:]
    maps, out = Random(torch.float32)(2, 3, 5, 7), empty_windows(top_down.encoding, 2, None)
    parameters = [list(p) for p in zip(*itertools.chain(*top_down.stages, [top_down.head]), strict=True)]
    levels, modes = list(itertools.chain(*top_down.horizontals)), ([1, 1], "bilinear", "zeros", None)
    with Asked():
        refine_windows.refine_windows(top_down.encoding, levels, *top_down.windows[1:], *parameters, *modes, out)
        grad = gather_windows.gather_windows([maps, maps], *windows, 3, 1)
        gather_windows.gather_windows_backward(grad, *windows, 2, [5, 5], [7, 7], False, [True, True], 1)
    assert "new_empty" in names
    assert names <= {"empty", "new_empty", "clone"}


def test_a_launch_that_fails_is_reported() -> None:
    top_down = TopDownPass(torch.float32, count=1)
    with emulator.machine(multiprocessors=0), pytest.raises(RuntimeError, match="a grid that no GPU takes"):
        refined(top_down)
    assert_agree(top_down)


# The compiled module and the emulator themselves.


def test_it_says_why_it_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "emulated", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cuda.unavailable.__wrapped__() == "PyTorch finds no CUDA device"
    backend, device = dataclasses.replace(cuda.BACKEND, simulated=lambda: False), torch.device("cpu")
    assert backend.refusal(device, torch.float32) == "maps must be on a cuda device on backend 'cuda', got cpu"
    monkeypatch.setattr(cuda, "_load", lambda: "not compiled at installation: no nvcc found")
    assert cuda.unavailable.__wrapped__() == "not compiled at installation: no nvcc found"
    with pytest.raises(RuntimeError, match="no nvcc found"):
        cuda.module()


KERNELS = [
    "right",
    "missing_barrier",
    "warp_barrier",
    "wrong_lane",
    "swapped_lanes",
    "missing_lane",
    "shared_bounds",
    "global_bounds",
]


@pytest.mark.parametrize("kernel", [*KERNELS, "split_barrier"])
def test_the_emulator_sees_planted_faults(kernel: str) -> None:
    self_test = emulator.build_self_test()
    for schedule in SCHEDULES:
        done = subprocess.run([self_test, kernel, str(schedule)], capture_output=True, text=True)
        assert (done.returncode == 0) == (kernel == "right"), done.stdout + done.stderr
        assert ("AddressSanitizer: heap-buffer-overflow" in done.stderr) == kernel.endswith("bounds")
