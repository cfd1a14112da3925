"""Who takes part: this checkout, an earlier commit, peers that run the dense pass, and other systems."""

from __future__ import annotations

from typing import Any, NamedTuple


class Contender(NamedTuple):
    """One who searches photos."""

    name: str
    group: str
    """ours, before, peer or other. The others find other masks and are measured for orientation only."""
    search: dict[str, Any]
    """What :func:`bench.photo.searches.make` takes besides the model."""
    exact: bool = True
    """Whether its results are those of plain PyTorch within rounding."""
    slow_start: bool = False
    """Whether it compiles for so long that it is measured with the most threads only."""


OURS, OPENVINO, INT8, BEFORE = "ours", "ours, openvino", "ours, openvino int8", "before"
EXPECTED = "eager"
"""Everyone's results are compared with those of plain PyTorch."""


def _ours(name: str, precision: str) -> Contender:
    search = {"kind": "generator", "engine": "openvino", "precision": precision}
    return Contender(name, "ours", search, exact=precision == "fp32")


def _peer(name: str, kind: str, **options: Any) -> Contender:
    return Contender(name, "peer", {"kind": kind, **options}, slow_start=kind == "compiled")


CONTENDERS = {
    contender.name: contender
    for contender in (
        _peer(EXPECTED, "eager"),
        _peer("eager-nhwc", "eager", channels_last=True),
        Contender(OURS, "ours", {"kind": "generator"}),
        _ours(OPENVINO, "fp32"),
        _ours(INT8, "int8"),
        _ours("ours, openvino bf16", "bf16"),
        Contender(BEFORE, "before", {"kind": "generator"}),
        _peer("compile", "compiled", dynamic=True),
        _peer("compile-freezing", "compiled", channels_last=True, dynamic=True, freezing=True),
        _peer("compile-freezing-static", "compiled", channels_last=True, dynamic=False, freezing=True),
        _peer("onnxruntime", "onnxruntime"),
        _peer("openvino", "openvino"),
        _peer("openvino-static", "openvino", static=True),
    )
}

DEFAULT = (EXPECTED, "eager-nhwc", OURS, OPENVINO, INT8, BEFORE, "compile-freezing", "onnxruntime", "openvino")
"""Who takes part unless others are named."""

DEEPMASK = Contender("original DeepMask, VGG-A, coarse masks", "other", {"kind": "generator", "refine": False})


def sam(side: int) -> Contender:
    """Segment Anything's automatic masks from a grid of ``side`` x ``side`` points."""
    return Contender(f"SAM ViT-B, {side}x{side} points", "other", {"kind": "sam", "side": side})
