#!/usr/bin/env bash
# torch 2.14.1: a convolution after replicate padding can be compiled, its gradient on the CPU cannot.
#
# Expected: torch.compile of `F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), w)`, or of a Conv2d with
# padding_mode="replicate", computes the gradient of x that it has uncompiled.
# Behaviour: the backward pass raises AssertionError, for maps in either memory format: "expected size 4==4, stride
# 1==36 at dim=1; ... Error in op: torch.ops.aten.replication_pad2d_backward.default". Inductor lays the maps out in
# channels_last for the convolution; the operator's kernel for CPUs answers in the format of x, its meta function says
# contiguous. Cells repeated by slices and torch.cat compile.
#
# Seen: "uncompiled: ok; compiled: AssertionError; by slices and cat, compiled: ok".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.14.1 numpy
TORCHINDUCTOR_CACHE_DIR="$work/cache" "$work/venv/bin/python" - <<'PYTHON'
import torch
import torch.nn.functional as F


def padded(x):
    return F.pad(x, (1, 1, 1, 1), mode="replicate")


def by_slices(x):
    x = torch.cat([x[:, :, :1], x, x[:, :, -1:]], 2)
    return torch.cat([x[..., :1], x, x[..., -1:]], 3)


def gradient(pad, compiled):
    torch.manual_seed(0)
    x, w = torch.rand(2, 4, 6, 6, requires_grad=True), torch.rand(3, 4, 3, 3)
    conv = lambda x: F.conv2d(pad(x), w)
    (torch.compile(conv) if compiled else conv)(x).square().sum().backward()
    return x.grad


expected = gradient(padded, False)
try:
    gradient(padded, True)
    seen = "ok"
except AssertionError as error:
    assert "replication_pad2d_backward" in str(error)
    seen = type(error).__name__
torch.testing.assert_close(gradient(by_slices, True), expected)
print(f"uncompiled: ok; compiled: {seen}; by slices and cat, compiled: ok")
assert seen == "AssertionError", "the behaviour has changed"
PYTHON
