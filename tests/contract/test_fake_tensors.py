"""Fake and meta tensors: results of the right shape, dtype, device and strides, from no values at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils import _pytree as pytree

import sharpmask_kernels as kernels
from sharpmask_kernels import Windows

from .inputs import SCATTERED, Random, TopDownPass, arguments, channels_last, contiguous, windows_at
from .subjects import REFINEMENT, Subject, each
from .test_refusals import VALID

pytestmark = pytest.mark.grid

Call = tuple[Callable[..., Any], list[Any]]

LOGITS = Random(torch.float32)(3, 6, 6)


def call(subject: Subject, function: Callable[..., Any], layout: Callable[[Tensor], Tensor] = contiguous) -> Call:
    """A call of the op by ``function``, and the arguments of it that tensors stand in."""
    random = Random(torch.float32, device=subject.device)
    windows = windows_at(*SCATTERED[:3], device=subject.device)
    if subject.op in REFINEMENT:
        a, b, *rest = arguments(subject.op, random, (2, 3, 4), (3, 2, 4))
        return function, [layout(a), layout(b), *rest]
    if subject.op == "gather_windows":
        maps = [layout(random(2, 3, 5, 4)), layout(random(2, 3, 4, 6))]
        return lambda maps, windows: function(maps, windows, 2), [maps, windows]
    if subject.op == "encode_windows":
        return lambda logits, windows: function(logits, windows, (9, 10), [0.5, 1.0]), [LOGITS.clone(), windows]
    if subject.op == "refine_windows":
        top_down = TopDownPass(torch.float32, device=subject.device)
        return function, [top_down.encoding, top_down.horizontals, top_down.windows, top_down.stages, top_down.head]
    valid = pytree.tree_map_only(Tensor, lambda x: x.to(subject.device), VALID[subject.op]())
    maps = {name: layout(x) for name, x in valid.items() if isinstance(x, Tensor) and x.ndim == 4}
    return lambda given: function(**given), [valid | maps]


@each()
@pytest.mark.parametrize("layout", [contiguous, channels_last])
@pytest.mark.parametrize("dynamic", [False, True])
def test_fake_tensors(subject: Subject, layout: Callable[[Tensor], Tensor], dynamic: bool) -> None:
    op, given = call(subject, subject.function, layout)
    expected = op(*given)
    with FakeTensorMode(shape_env=ShapeEnv() if dynamic else None) as mode:
        fake = pytree.tree_map_only(Tensor, mode.from_tensor, given)
        out = op(*fake)
    if subject.op == "encode_windows":
        assert [rle["size"] for rle in out] == [rle["size"] for rle in expected]
        assert {rle["counts"] for rle in out} == {b""}
    else:
        assert isinstance(out, FakeTensor)
        assert (out.shape, out.dtype, out.device) == (expected.shape, expected.dtype, expected.device)
        assert out.stride() == expected.stride()


@each()
def test_meta_tensors(subject: Subject) -> None:
    expected, given = call(subject, subject.function)
    op, _ = call(subject, getattr(kernels, subject.op))
    meta = pytree.tree_map_only(Tensor, lambda x: x.to("meta"), given)
    if subject.op == "encode_windows":
        with pytest.raises(ValueError, match=r"^logits must be on a device that holds values, got meta$"):
            op(*meta)
        return
    out = op(*meta)
    assert (out.shape, out.device.type) == (expected(*given).shape, "meta")


def test_fake_windows_from_fake_scores() -> None:
    with FakeTensorMode() as mode:
        scores = mode.from_tensor(torch.zeros(2, 1, 3, 4))
        windows = kernels.topk_windows([scores], 5)
        cut = kernels.gather_windows(mode.from_tensor(torch.zeros(2, 3, 6, 8)), windows, 4, step=2)
    assert cut.shape == (10, 3, 4, 4)


class Cut(nn.Module):
    def forward(self, maps: Tensor, image: Tensor, row: Tensor) -> Tensor:
        zeros = torch.zeros_like(image)
        return kernels.gather_windows(maps, Windows(zeros.float(), image, zeros, row, zeros), 2)


@pytest.mark.parametrize("strict", [False, True])
def test_windows_that_are_inputs_of_an_export(strict: bool) -> None:
    maps, image, row = Random(torch.float32)(2, 3, 5, 4), torch.tensor([0, 1, 1]), torch.tensor([-1, 2, 9])
    dynamic = ({2: torch.export.Dim.AUTO}, *({0: torch.export.Dim.AUTO},) * 2)
    exported = torch.export.export(Cut(), (maps, image, row), dynamic_shapes=dynamic, strict=strict).module()
    maps = Random(torch.float32)(2, 3, 7, 4)
    assert torch.equal(exported(maps, image[:2], row[:2]), Cut()(maps, image[:2], row[:2]))


def test_encode_windows_is_not_exported() -> None:
    class Encode(nn.Module):
        def forward(self, logits: Tensor) -> Tensor:
            kernels.encode_windows(logits, windows_at((0, 0, 0, 0)), (6, 6), [1.0])
            return logits

    with pytest.raises(Exception, match="encode_windows ends on the host"):
        torch.export.export(Encode(), (LOGITS[:1],), strict=False)


def test_encode_windows_in_compiled_code() -> None:
    """It breaks the graph, and gives what it gives without a compiler."""
    windows = windows_at(*SCATTERED[:3])

    def encode(logits: Tensor) -> Any:
        return kernels.encode_windows(logits + 1, windows, (9, 10), [0.5, 1.0])

    torch._dynamo.reset()
    assert torch.compile(encode, backend="eager")(LOGITS) == encode(LOGITS)
