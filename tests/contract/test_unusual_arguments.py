"""Tensors of unusual kinds and numbers of unusual sizes: one line that names the argument, or the right result."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sharpmask_kernels as kernels
from sharpmask_kernels import Refinement, Windows

from .inputs import Random, arguments
from .test_refusals import VALID

pytestmark = pytest.mark.filterwarnings("ignore:.*(prototype|beta|[Ss]parse|quant|mutable).*")

KINDS: dict[str, Callable[[Tensor], Any]] = {
    "sparse": lambda x: x.to_sparse(),
    "mkldnn": lambda x: x.to_mkldnn(),
    "nested": lambda x: torch.nested.nested_tensor(list(x)),
    "jagged": lambda x: torch.nested.nested_tensor(list(x), layout=torch.jagged),
    "quantized": lambda x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8),
    "complex": lambda x: x.to(torch.complex64),
    "float8": lambda x: x.to(torch.float8_e4m3fn),
    "meta": lambda x: x.to("meta"),
    "array": lambda x: x.numpy(),
    "list": lambda x: x.tolist(),
    "nothing": lambda x: object(),
}


def places(value: Any, name: str = "") -> Iterator[tuple[str, Callable[[Callable[[Tensor], Any]], Any]]]:
    """The name of every tensor in ``value``, and a function that makes ``value`` with that tensor replaced."""
    if isinstance(value, Tensor):
        yield name, lambda change: change(value)
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    for key, part in parts:
        for found, put in places(part, f"{name}[{key}]" if name else str(key)):
            yield found, lambda change, key=key, put=put: _with(value, key, put(change))


def _with(value: Any, key: Any, part: Any) -> Any:
    if isinstance(value, dict):
        return {**value, key: part}
    parts = [part if i == key else old for i, old in enumerate(value)]
    return Windows(*parts) if isinstance(value, Windows) else type(value)(parts)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("op", VALID)
def test_tensors_of_other_kinds(op: str, kind: str) -> None:
    for name, put in places(VALID[op]()):
        try:
            changed = put(KINDS[kind])
        except (RuntimeError, NotImplementedError):
            continue  # PyTorch has no such tensor
        # Beside a meta tensor the next argument is the odd one.
        with pytest.raises((ValueError, TypeError), match=r"^\S+ must be .*, got .*$") as caught:
            getattr(kernels, op)(**changed)
        assert "\n" not in str(caught.value), name


HUGE = 2**63
NO_INTEGERS = [2.5, math.nan, math.inf, 1e308, True, "3", None, [1], 1j, b"x", torch.tensor(2.5), torch.zeros(2)]
NO_NUMBERS = [None, "0.5", True, [0.5], 1j, torch.zeros(2)]
NO_LISTS = [None, 5, 0.5, True]


@pytest.mark.parametrize(
    ("op", "name", "least"), [("topk_windows", "n", 0), ("gather_windows", "size", 1), ("gather_windows", "step", 1)]
)
def test_numbers_that_are_no_sizes(op: str, name: str, least: int) -> None:
    for value in NO_INTEGERS:
        with pytest.raises(TypeError, match=f"^{name} must be an integer, got "):
            getattr(kernels, op)(**VALID[op]() | {name: value})
    for value in (least - 1, -HUGE, -(10**30)):
        with pytest.raises(ValueError, match=f"^{name} must be at least {least}, got {value}$"):
            getattr(kernels, op)(**VALID[op]() | {name: value})
    for value in (HUGE, 10**30):
        with pytest.raises(ValueError, match=f"^{name} must be at most {HUGE - 1}, got {value}$"):
            getattr(kernels, op)(**VALID[op]() | {name: value})
    expected = getattr(kernels, op)(**VALID[op]() | {name: 2})
    for value in (np.int64(2), torch.tensor(2)):
        torch.testing.assert_close(getattr(kernels, op)(**VALID[op]() | {name: value}), expected)


def test_large_sizes_that_are_right() -> None:
    assert len(kernels.topk_windows(**VALID["topk_windows"]() | {"n": HUGE - 1}).score) == 2 * (20 + 4)
    assert not kernels.gather_windows(**VALID["gather_windows"]() | {"step": HUGE - 1}).any()


@pytest.mark.parametrize("op", ["refine_windows", "encode_windows"])
def test_thresholds_that_are_no_numbers(op: str) -> None:
    for value in NO_NUMBERS[op == "refine_windows" :]:
        with pytest.raises(TypeError, match=r"^threshold must be a number, got "):
            getattr(kernels, op)(**VALID[op]() | {"threshold": value})
    for value in (HUGE, -1e308, math.nan, 10**400):
        with pytest.raises(ValueError, match=r"^threshold must be "):
            getattr(kernels, op)(**VALID[op]() | {"threshold": value})


def encode(**changed: Any) -> Any:
    return kernels.encode_windows(**VALID["encode_windows"]() | changed)


def test_scales_and_sizes_of_images() -> None:
    for value in NO_NUMBERS:
        with pytest.raises(TypeError, match=r"^scales\[1\] must be a number, got "):
            encode(scales=[0.5, value])
    with pytest.raises(ValueError, match=r"^scales must be small enough for scaled sides that a float can hold, got "):
        encode(scales=[0.5, 1e308])
    for value in NO_LISTS:
        with pytest.raises(TypeError, match=r"^scales must be a list, got "):
            encode(scales=value)
        with pytest.raises(TypeError, match=r"^image_size must be a pair \(height, width\), got "):
            encode(image_size=value)
    for value in NO_INTEGERS:
        with pytest.raises(TypeError, match=r"^image_size\[0\] must be an integer, got "):
            encode(image_size=(value, 5))
    with pytest.raises(ValueError, match=r"^image_size must be a pair \(height, width\), got 3 values$"):
        encode(image_size=(4, 5, 3))
    with pytest.raises(ValueError, match=r"^image_size must be at least 1x1, got \(-9, 5\)$"):
        encode(image_size=(-9, 5))
    assert encode(scales=(5e-324, np.float32(1)), image_size=torch.tensor([4, 5])) == encode(scales=[1e-9, 1.0])


def test_windows_and_lists_of_other_types() -> None:
    for value in (None, 5, tuple(VALID["gather_windows"]()["windows"]), torch.zeros(5, 2)):
        with pytest.raises(TypeError, match=r"^windows must be a Windows, got "):
            kernels.gather_windows(**VALID["gather_windows"]() | {"windows": value})
    for op, name in (("gather_windows", "maps"), ("topk_windows", "scores"), ("refine_windows", "horizontals")):
        with pytest.raises(TypeError, match=f"^{name} must be a list, got int$"):
            getattr(kernels, op)(**VALID[op]() | {name: 5})
    given = VALID["refine_windows"]()
    for changed, text in (
        ({"horizontals": [5]}, r"horizontals\[0\] must be a list, got int"),
        ({"stages": [5, []]}, r"stages\[0\] must be a list, got int"),
        ({"stages": [[5]]}, r"stages\[0\]\[0\] must be a pair \(weight, bias\), got int"),
        (
            {"stages": [[(torch.zeros(1),)], given["stages"][1]]},
            r"stages\[0\]\[0\] must be a pair \(weight, bias\), got 1 values",
        ),
        ({"head": None}, r"head must be a pair \(weight, bias\), got NoneType"),
        ({"out": [1]}, "out must be a tensor, got list"),
    ):
        with pytest.raises((TypeError, ValueError), match=f"^{text}$"):
            kernels.refine_windows(**given | changed)
    for name in ("upsample", "padding_mode", "backend"):
        for value in ([], b"x", np.zeros(2), torch.zeros(2), 5):
            with pytest.raises(ValueError, match=f"^{name} must be one of "):
                kernels.refine_windows(**given | {name: value})


def test_channels_that_are_no_integers() -> None:
    for value in (2.5, "2", None, True):
        with pytest.raises(TypeError, match=r"^mask_channels must be an integer, got "):
            Refinement(4, value, 2, 3)  # type: ignore[arg-type]


def test_tensors_that_negate_lazily() -> None:
    """Views such as ``z.conj().imag`` carry the sign as a bit that kernels do not read."""
    given = arguments("merge_upsample", Random(torch.float32), (1, 3, 4), (2, 3, 2))
    negative = [torch.complex(x, -x).conj().imag for x in given]
    assert all(x.is_neg() for x in negative)
    torch.testing.assert_close(kernels.merge_upsample(*negative), kernels.merge_upsample(*given))
    out = torch.view_as_complex(torch.zeros(2, 16, 16, 2)).conj().imag
    with pytest.raises(ValueError, match=r"^out must be without the bit of a lazy negation"):
        kernels.refine_windows(**VALID["refine_windows"]() | {"out": out})
