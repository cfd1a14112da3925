"""Convolutions with bias, sum and ReLU in one pass against the modules that they stand for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sharpmask.models import packed
from sharpmask.models.packed import PackedConvolution, works

CASES = {
    "1x1": {"kernel_size": 1},
    "3x3, edges repeated": {"kernel_size": 3, "padding": 1, "padding_mode": "replicate"},
    "3x3, mirrored": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect", "stride": 2},
    "3x3, zeros": {"kernel_size": 3, "padding": 1},
    "7x7, rows and columns differ": {"kernel_size": (3, 7), "padding": (1, 3), "stride": (1, 2)},
}


@pytest.mark.parametrize("public", [True, False], ids=["public ops", "the fastest"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_outputs_are_those_of_the_module(case: str, bias: bool, public: bool) -> None:
    conv = nn.Conv2d(5, 8, bias=bias, **CASES[case])  # type: ignore[arg-type]
    compute = PackedConvolution(conv, public=public)
    for size in ((9, 12), (7, 8), (64, 65)):
        x = torch.randn(1, 5, *size).contiguous(memory_format=torch.channels_last)
        expected = conv(x)
        total = torch.randn_like(expected)
        torch.testing.assert_close(compute(compute.padded(x), relu=False), expected)
        torch.testing.assert_close(compute(compute.padded(x), relu=True), expected.relu())
        both = (total + expected).relu()
        out = compute.add_relu(compute.padded(x), total)
        torch.testing.assert_close(out, both)
        assert out.data_ptr() == total.data_ptr()


def test_the_ops_without_a_public_name_work_here() -> None:
    assert works()
    assert PackedConvolution(nn.Conv2d(3, 4, 1)).packed
    assert not PackedConvolution(nn.Conv2d(3, 4, 1).double()).packed


@pytest.mark.parametrize("name", ["_convolution_pointwise", "_reorder_convolution_weight"])
@pytest.mark.parametrize("change", [None, lambda *args: torch.zeros(1, 4, 4, 5)], ids=["missing", "another result"])
def test_what_does_not_work_is_not_used(name: str, change: object, monkeypatch: pytest.MonkeyPatch) -> None:
    ops = {op: getattr(torch.ops.mkldnn, op) for op in ("_convolution_pointwise", "_reorder_convolution_weight")}
    fake = SimpleNamespace(**(ops | {name: change}), _convolution_pointwise_=torch.ops.mkldnn._convolution_pointwise_)
    with monkeypatch.context() as patch:
        patch.setattr(torch.ops, "mkldnn", fake)
        patch.setattr(packed, "works", packed.works.__wrapped__)
        assert not packed.works()
        assert not PackedConvolution(nn.Conv2d(3, 4, 1)).packed


@pytest.mark.filterwarnings(
    "ignore:.torch.jit.trace. is deprecated:FutureWarning", "ignore:.torch.jit.trace. is deprecated:DeprecationWarning"
)
def test_exporters_see_public_ops() -> None:
    conv = nn.Conv2d(3, 4, 3, padding=1, padding_mode="replicate").requires_grad_(False)
    compute = PackedConvolution(conv, public=True)
    traced = torch.jit.trace(lambda x: compute(compute.padded(x), relu=True), torch.rand(1, 3, 8, 8), check_trace=False)
    x = torch.rand(1, 3, 20, 30)
    torch.testing.assert_close(traced(x), conv(x).relu())
