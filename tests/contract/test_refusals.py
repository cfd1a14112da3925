"""What the ops refuse, with the same text on every backend: the argument's name, what it must be, what came."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

import sharpmask_kernels as kernels
from sharpmask_kernels import Windows, registry

from .subjects import Subject, all_subjects, each, missing


def zeros(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> torch.Tensor:
    return torch.zeros(*shape, dtype=dtype, device=device)


def windows(count: int = 2, **fields: Any) -> Windows:
    index = torch.zeros(count, dtype=torch.int64)
    return Windows(torch.zeros(count), index, index, index, index)._replace(**fields)


# Valid arguments of every op; each case below replaces one.
VALID: dict[str, Callable[[], dict[str, Any]]] = {
    "merge_upsample": lambda: {
        "skip": zeros(2, 3, 4, 5),
        "mask": zeros(2, 2, 4, 5),
        "weight": zeros(6, 5, 3, 3),
        "bias": zeros(6),
    },
    "refine": lambda: {
        "feature": zeros(2, 7, 4, 5),
        "mask": zeros(2, 2, 4, 5),
        "skip_weight": zeros(3, 7, 3, 3),
        "skip_bias": zeros(3),
        "merge_weight": zeros(6, 5, 3, 3),
        "merge_bias": zeros(6),
    },
    "add_upsample": lambda: {
        "horizontal": zeros(2, 6, 4, 5),
        "mask": zeros(2, 2, 4, 5),
        "weight": zeros(6, 2, 3, 3),
        "bias": zeros(6),
    },
    "upsample_merge": lambda: {
        "mask": zeros(2, 2, 4, 5),
        "skip": zeros(2, 3, 8, 10),
        "weight": zeros(6, 5, 3, 3),
        "bias": zeros(6),
    },
    "upsample_add": lambda: {"mask": zeros(2, 3, 4, 5), "lateral": zeros(2, 3, 8, 10)},
    "topk_windows": lambda: {"scores": [zeros(2, 1, 4, 5), zeros(2, 1, 2, 2)], "n": 3},
    "gather_windows": lambda: {"maps": [zeros(2, 3, 4, 5), zeros(2, 3, 2, 2)], "windows": windows(), "size": 2},
    "refine_windows": lambda: {
        "encoding": zeros(2, 3, 4, 4),
        "horizontals": [[zeros(1, 5, 6, 7), zeros(1, 2, 12, 14)], [zeros(1, 5, 4, 4), zeros(1, 2, 8, 8)]],
        "windows": windows(),
        "stages": [[(zeros(5, 3, 3, 3), None)], [(zeros(4, 5, 3, 3), zeros(4)), (zeros(2, 4, 3, 3), zeros(2))]],
        "head": (zeros(1, 2, 3, 3), zeros(1)),
    },
    "horizontal": lambda: {
        "feature": zeros(2, 3, 4, 5),
        "convs": [(zeros(6, 3, 3, 3), None), (zeros(2, 6, 3, 3), zeros(2))],
    },
    "inverted_residual": lambda: {
        "x": zeros(2, 3, 4, 5),
        "expand": (zeros(6, 3, 1, 1), zeros(6)),
        "depthwise": (zeros(6, 1, 3, 3), zeros(6)),
        "project": (zeros(4, 6, 1, 1), None),
    },
    "encode_windows": lambda: {
        "logits": zeros(2, 6, 6),
        "windows": windows(),
        "image_size": (4, 5),
        "scales": [0.5, 1.0],
    },
}


def stages(weight: Any, bias: Any = None) -> Any:
    """The stages of VALID with the first convolution replaced."""
    return [[(weight, bias)], VALID["refine_windows"]()["stages"][1]]


half, double = torch.float16, torch.float64
maps3 = "(B, C, H, W)"

CASES: list[tuple[str, dict[str, Any], str]] = [
    # Modes and backends.
    ("merge_upsample", {"upsample": "cubic"}, "upsample must be one of 'bilinear', 'nearest', got 'cubic'"),
    ("refine", {"upsample": ""}, "upsample must be one of 'bilinear', 'nearest', got ''"),
    ("add_upsample", {"upsample": None}, "upsample must be one of 'bilinear', 'nearest', got None"),
    ("refine_windows", {"upsample": "area"}, "upsample must be one of 'bilinear', 'nearest', got 'area'"),
    ("merge_upsample", {"padding_mode": "x"}, "padding_mode must be one of 'zeros', 'replicate', got 'x'"),
    ("refine", {"padding_mode": "reflect"}, "padding_mode must be one of 'zeros', 'replicate', got 'reflect'"),
    ("add_upsample", {"padding_mode": "same"}, "padding_mode must be one of 'zeros', 'replicate', got 'same'"),
    ("refine_windows", {"padding_mode": "x"}, "padding_mode must be one of 'zeros', 'replicate', got 'x'"),
    # Maps: rank, kind, emptiness.
    ("merge_upsample", {"skip": zeros(3, 4, 5)}, "skip must be of shape (B, Ks, H, W), got (3, 4, 5)"),
    ("refine", {"feature": zeros(1)}, "feature must be of shape (B, Kf, H, W), got (1,)"),
    ("add_upsample", {"horizontal": zeros(())}, "horizontal must be of shape (B, Ko, H, W), got ()"),
    ("merge_upsample", {"mask": zeros(1, 2, 2, 4, 5)}, "mask must be of shape (B, Km, H, W), got (1, 2, 2, 4, 5)"),
    ("refine_windows", {"encoding": zeros(2, 3, 4)}, "encoding must be of shape (N, K0, s, s), got (2, 3, 4)"),
    ("merge_upsample", {"skip": zeros(2, 3, 4, 5, dtype=torch.int32)}, "skip must be floating point, got torch.int32"),
    ("refine", {"feature": zeros(2, 7, 4, 5, dtype=torch.cfloat)}, "feature must be floating point, got torch.complex"),
    ("gather_windows", {"maps": zeros(1, 1, 1, 1, dtype=torch.bool)}, "maps[0] must be floating point, got torch.bool"),
    (
        "topk_windows",
        {"scores": [zeros(1, 1, 2, 2, dtype=torch.uint8)]},
        "scores[0] must be floating point, got torch.",
    ),
    ("encode_windows", {"logits": zeros(2, 6, 6, dtype=torch.int64)}, "logits must be floating point, got torch.int64"),
    (
        "merge_upsample",
        {"skip": zeros(2, 0, 4, 5)},
        "skip must be of shape (B, Ks, H, W) with no empty dimension but the batch, got (2, 0, 4, 5)",
    ),
    ("add_upsample", {"mask": zeros(2, 2, 0, 5)}, "with no empty dimension but the batch, got (2, 2, 0, 5)"),
    ("refine", {"feature": zeros(2, 7, 4, 0)}, "with no empty dimension but the batch, got (2, 7, 4, 0)"),
    # Maps: alike.
    ("merge_upsample", {"mask": zeros(1, 2, 4, 5)}, "mask must be of batch 2 and size (4, 5), got (1, 2, 4, 5)"),
    ("refine", {"mask": zeros(2, 2, 5, 4)}, "mask must be of batch 2 and size (4, 5), got (2, 2, 5, 4)"),
    ("add_upsample", {"mask": zeros(2, 2, 4, 6)}, "mask must be of batch 2 and size (4, 5), got (2, 2, 4, 6)"),
    (
        "merge_upsample",
        {"mask": zeros(2, 2, 4, 5, dtype=half)},
        "mask must be of dtype torch.float32 like the other tensors, got torch.float16",
    ),
    (
        "refine",
        {"mask": zeros(2, 2, 4, 5, device="meta")},
        "mask must be on device cpu like the other tensors, got meta",
    ),
    # Convolutions.
    (
        "merge_upsample",
        {"weight": zeros(6, 5, 5, 5)},
        "weight must be of shape (out_channels, 5, 3, 3), got (6, 5, 5, 5)",
    ),
    (
        "merge_upsample",
        {"weight": zeros(6, 4, 3, 3)},
        "weight must be of shape (out_channels, 5, 3, 3), got (6, 4, 3, 3)",
    ),
    (
        "merge_upsample",
        {"weight": zeros(0, 5, 3, 3)},
        "weight must be of shape (out_channels, 5, 3, 3), got (0, 5, 3, 3)",
    ),
    ("merge_upsample", {"weight": zeros(6, 45)}, "weight must be of shape (out_channels, 5, 3, 3), got (6, 45)"),
    ("add_upsample", {"weight": zeros(5, 2, 3, 3)}, "weight must be of shape (6, 2, 3, 3), got (5, 2, 3, 3)"),
    (
        "refine",
        {"skip_weight": zeros(3, 6, 3, 3)},
        "skip_weight must be of shape (out_channels, 7, 3, 3), got (3, 6, 3, 3)",
    ),
    (
        "refine",
        {"skip_weight": zeros(4, 7, 3, 3), "skip_bias": None},
        "merge_weight must be of shape (out_channels, 6, 3, 3)",
    ),
    (
        "merge_upsample",
        {"weight": zeros(6, 5, 3, 3, dtype=double)},
        "weight must be of dtype torch.float32 like the other",
    ),
    (
        "merge_upsample",
        {"weight": zeros(6, 5, 3, 3, device="meta")},
        "weight must be on device cpu like the other tensors",
    ),
    ("merge_upsample", {"bias": zeros(5)}, "bias must be of shape (6,), got (5,)"),
    ("add_upsample", {"bias": zeros(6, 1)}, "bias must be of shape (6,), got (6, 1)"),
    ("refine", {"skip_bias": zeros(6)}, "skip_bias must be of shape (3,), got (6,)"),
    (
        "refine",
        {"merge_bias": zeros(6, dtype=half)},
        "merge_bias must be of dtype torch.float32 like the other tensors",
    ),
    (
        "merge_upsample",
        {"bias": zeros(6, device="meta")},
        "bias must be on device cpu like the other tensors, got meta",
    ),
    # Pyramids.
    ("topk_windows", {"scores": []}, "scores must be at least one map, got an empty list"),
    ("gather_windows", {"maps": []}, "maps must be at least one map, got an empty list"),
    ("gather_windows", {"maps": [zeros(3, 4, 5)]}, f"maps[0] must be of shape {maps3}, got (3, 4, 5)"),
    (
        "gather_windows",
        {"maps": [zeros(2, 3, 4, 5), zeros(2, 4, 4, 5)]},
        "maps[1] must be of batch and channels (2, 3), got (2, 4, 4, 5)",
    ),
    (
        "topk_windows",
        {"scores": [zeros(2, 1, 1, 1), zeros(1, 1, 1, 1)]},
        "scores[1] must be of batch and channels (2, 1)",
    ),
    (
        "topk_windows",
        {"scores": [zeros(1, 1, 1, 1), zeros(1, 1, 1, 1, dtype=half)]},
        "scores[1] must be of dtype torch.fl",
    ),
    (
        "gather_windows",
        {"maps": [zeros(1, 1, 1, 1), zeros(1, 1, 1, 1, device="meta")]},
        "maps[1] must be on device cpu",
    ),
    ("topk_windows", {"scores": [zeros(2, 3, 4, 5)]}, "scores must be of one channel, got 3"),
    # Numbers.
    ("topk_windows", {"n": -1}, "n must be at least 0, got -1"),
    ("gather_windows", {"size": 0}, "size must be at least 1, got 0"),
    ("gather_windows", {"step": 0}, "step must be at least 1, got 0"),
    *(
        (op, {"threshold": value}, f"threshold must be strictly between 0 and 1, got {value}")
        for op in ("refine_windows", "encode_windows")
        for value in (0, 1, -0.1, 1.5, math.nan, math.inf)
    ),
    # Windows.
    (
        "gather_windows",
        {"windows": windows(row=zeros(2))},
        "windows.row must be of dtype torch.int64, got torch.float32",
    ),
    (
        "gather_windows",
        {"windows": windows(score=zeros(2, dtype=half))},
        "windows.score must be of dtype torch.float32, got",
    ),
    (
        "gather_windows",
        {"windows": windows(col=torch.zeros(3, dtype=torch.int64))},
        "windows.col must be one value per window, got (3,)",
    ),
    (
        "gather_windows",
        {"windows": windows(score=zeros(2, 1))},
        "windows.score must be one value per window, got (2, 1)",
    ),
    (
        "gather_windows",
        {"windows": windows(image=torch.zeros(2, dtype=torch.int64, device="meta"))},
        "windows.image must be on device cpu, got meta",
    ),
    ("gather_windows", {"windows": windows(scale=torch.tensor([0, 2]))}, "windows.scale must be within 0..1, got 0..2"),
    (
        "gather_windows",
        {"windows": windows(scale=torch.tensor([-1, 1]))},
        "windows.scale must be within 0..1, got -1..1",
    ),
    ("gather_windows", {"windows": windows(image=torch.tensor([2, 0]))}, "windows.image must be within 0..1, got 0..2"),
    (
        "gather_windows",
        {"windows": windows(image=torch.tensor([0, -3]))},
        "windows.image must be within 0..1, got -3..0",
    ),
    ("refine_windows", {"windows": windows(image=torch.tensor([0, 1]))}, "windows.image must be within 0..0, got 0..1"),
    ("encode_windows", {"windows": windows(scale=torch.tensor([0, 2]))}, "windows.scale must be within 0..1, got 0..2"),
    ("refine_windows", {"windows": windows(3)}, "windows must be 2 windows, one per encoding, got 3"),
    ("encode_windows", {"windows": windows(1)}, "windows must be 2 windows, one per mask, got 1"),
    # refine_windows.
    ("refine_windows", {"encoding": zeros(2, 3, 4, 5)}, "encoding must be square, (N, K0, s, s), got (2, 3, 4, 5)"),
    ("horizontal", {"convs": [zeros(5, 6, 3, 3)]}, "convs[0] must be a pair (weight, bias), got 5 values"),
    ("inverted_residual", {"depthwise": zeros(9, 1, 3, 3)}, "depthwise must be a pair (weight, bias), got 9 values"),
    ("inverted_residual", {"project": (zeros(6, 9, 1, 1),)}, "project must be a pair (weight, bias), got 1 values"),
    ("refine_windows", {"horizontals": []}, "horizontals must be one list of maps per scale, got an empty list"),
    ("refine_windows", {"stages": []}, "stages must be at least one stage, got an empty list"),
    (
        "refine_windows",
        {"horizontals": [[zeros(1, 5, 6, 7)]]},
        "horizontals[0] must be of 2 maps, one per stage, got 1",
    ),
    ("refine_windows", {"stages": [[], []]}, "stages[0] must be at least one convolution, got an empty list"),
    (
        "refine_windows",
        {"stages": stages(zeros(5, 2, 3, 3))},
        "stages[0][0].weight must be of shape (out_channels, 3, 3, 3), got (5, 2, 3, 3)",
    ),
    (
        "refine_windows",
        {"stages": stages(zeros(5, 3, 3, 3), zeros(4))},
        "stages[0][0].bias must be of shape (5,), got (4,)",
    ),
    (
        "refine_windows",
        {"horizontals": [[zeros(1, 4, 6, 7), zeros(1, 2, 12, 14)]]},
        "horizontals[:][0] must be of 5 channels, got 4",
    ),
    (
        "refine_windows",
        {"horizontals": [[zeros(1, 5, 6, 7), zeros(2, 2, 12, 14)]]},
        "horizontals[:][1] must be of batch 1 like the first stage's, got 2",
    ),
    (
        "refine_windows",
        {"horizontals": [[zeros(1, 5, 6, 7, dtype=double), zeros(1, 2, 12, 14)]]},
        "horizontals[:][0] must be of dtype torch.float32 like the other tensors, got torch.float64",
    ),
    (
        "refine_windows",
        {"horizontals": [[zeros(1, 5, 6, 7), zeros(1, 2, 8, 8)], [zeros(2, 5, 6, 7), zeros(1, 2, 8, 8)]]},
        "horizontals[:][0][1] must be of batch and channels (1, 5), got (2, 5, 6, 7)",
    ),
    (
        "refine_windows",
        {"head": (zeros(2, 2, 3, 3), None)},
        "head.weight must be of shape (1, 2, 3, 3), got (2, 2, 3, 3)",
    ),
    ("refine_windows", {"head": (zeros(1, 2, 3, 3), zeros(2))}, "head.bias must be of shape (1,), got (2,)"),
    ("refine_windows", {"out": zeros(2, 16, 2)}, "out must be of shape (2, 16, 16), got (2, 16, 2)"),
    (
        "refine_windows",
        {"out": zeros(2, 16, 16, dtype=double)},
        "out must be of dtype torch.float32, got torch.float64",
    ),
    ("refine_windows", {"out": zeros(2, 16, 16), "threshold": 0.5}, "out must be of shape (2, 16, 2), got (2, 16, 16)"),
    (
        "refine_windows",
        {"out": zeros(2, 16, 2), "threshold": 0.5},
        "out must be of dtype torch.uint8, got torch.float32",
    ),
    ("refine_windows", {"out": zeros(2, 16, 16, device="meta")}, "out must be on device cpu, got meta"),
    # encode_windows.
    ("encode_windows", {"logits": zeros(2, 5, 5)}, "logits must be of shape (N, S, S) with S even, got (2, 5, 5)"),
    ("encode_windows", {"logits": zeros(2, 4, 6)}, "logits must be of shape (N, S, S) with S even, got (2, 4, 6)"),
    ("encode_windows", {"logits": zeros(2, 0, 0)}, "logits must be of shape (N, S, S) with S even, got (2, 0, 0)"),
    (
        "encode_windows",
        {"logits": zeros(2, 1, 6, 6)},
        "logits must be of shape (N, S, S) with S even, got (2, 1, 6, 6)",
    ),
    ("encode_windows", {"image_size": (0, 5)}, "image_size must be at least 1x1, got (0, 5)"),
    ("encode_windows", {"scales": [0.5, 0.0]}, "scales must be positive, got [0.5, 0.0]"),
    ("encode_windows", {"scales": [0.5, math.nan]}, "scales must be positive, got [0.5, nan]"),
    ("encode_windows", {"scales": [0.5, math.inf]}, "scales must be positive, got [0.5, inf]"),
    # upsample_merge and upsample_add.
    (
        "upsample_merge",
        {"upsample": "area"},
        "upsample must be one of 'bilinear', 'nearest', 'bilinear_corners', got 'area'",
    ),
    ("upsample_add", {"upsample": True}, "upsample must be one of 'bilinear', 'nearest', 'bilinear_corners', got True"),
    (
        "upsample_merge",
        {"activation": "gelu"},
        "activation must be one of 'relu', 'elu', 'leaky_relu', 'silu', 'none', got 'gelu'",
    ),
    (
        "upsample_add",
        {"activation": None},
        "activation must be one of 'relu', 'elu', 'leaky_relu', 'silu', 'none', got None",
    ),
    ("upsample_merge", {"padding_mode": "same"}, "padding_mode must be one of 'zeros', 'replicate', got 'same'"),
    ("upsample_merge", {"mask": zeros(2, 4, 5)}, "mask must be of shape (B, Km, H, W), got (2, 4, 5)"),
    ("upsample_add", {"mask": zeros(2, 3, 0, 5)}, "with no empty dimension but the batch, got (2, 3, 0, 5)"),
    (
        "upsample_merge",
        {"skip": zeros(2, 3, 4, 5)},
        "skip must be of batch 2 and size (8, 10), twice that of mask, got (2, 3, 4, 5)",
    ),
    (
        "upsample_add",
        {"lateral": zeros(2, 3, 9, 10)},
        "lateral must be of batch 2 and size (8, 10), twice that of mask, got (2, 3, 9, 10)",
    ),
    ("upsample_add", {"lateral": zeros(2, 4, 8, 10)}, "lateral must be of 3 channels like mask, got 4"),
    ("upsample_merge", {"skip": None}, "weight must be of shape (out_channels, 2, 3, 3), got (6, 5, 3, 3)"),
    ("upsample_merge", {"bias": zeros(5)}, "bias must be of shape (6,), got (5,)"),
    (
        "upsample_merge",
        {"skip": zeros(2, 3, 8, 10, dtype=half)},
        "skip must be of dtype torch.float32 like the other tensors, got torch.float16",
    ),
    (
        "upsample_add",
        {"lateral": zeros(2, 3, 8, 10, dtype=double)},
        "lateral must be of dtype torch.float32 like the other tensors, got torch.float64",
    ),
    # horizontal.
    ("horizontal", {"feature": zeros(3, 4, 5)}, f"feature must be of shape {maps3}, got (3, 4, 5)"),
    ("horizontal", {"padding_mode": "same"}, "padding_mode must be one of 'zeros', 'replicate', got 'same'"),
    ("horizontal", {"convs": []}, "convs must be at least one convolution, got an empty list"),
    (
        "horizontal",
        {"convs": [(zeros(6, 3, 3, 3), None), (zeros(2, 5, 3, 3), None)]},
        "convs[1].weight must be of shape (out_channels, 6, 3, 3), got (2, 5, 3, 3)",
    ),
    ("horizontal", {"tile": 0}, "tile must be at least 1, got 0"),
    (
        "horizontal",
        {"needed": zeros(2, 2, 2, dtype=torch.bool), "tile": 2},
        "needed must be of shape (2, 2, 3), got (2, 2, 2)",
    ),
    ("horizontal", {"needed": zeros(2, 4, 5)}, "needed must be of dtype torch.bool, got torch.float32"),
    # inverted_residual.
    ("inverted_residual", {"x": zeros(3, 4, 5)}, f"x must be of shape {maps3}, got (3, 4, 5)"),
    ("inverted_residual", {"stride": 3}, "stride must be at most 2, got 3"),
    (
        "inverted_residual",
        {"expand": (zeros(6, 4, 1, 1), None)},
        "expand.weight must be of shape (out_channels, 3, 1, 1), got (6, 4, 1, 1)",
    ),
    (
        "inverted_residual",
        {"expand": None},
        "depthwise.weight must be of shape (3, 1, 3, 3), got (6, 1, 3, 3)",
    ),
    (
        "inverted_residual",
        {"depthwise": (zeros(6, 1, 4, 4), None)},
        "depthwise.weight must be of shape (6, 1, k, k), k 3 or 5, got (6, 1, 4, 4)",
    ),
    (
        "inverted_residual",
        {"depthwise": (zeros(6, 1, 3, 3), zeros(5))},
        "depthwise.bias must be of shape (6,), got (5,)",
    ),
    (
        "inverted_residual",
        {"project": (zeros(4, 6, 1, 1, dtype=half), None)},
        "project.weight must be of dtype torch.float32 like the other tensors, got torch.float16",
    ),
    (
        "inverted_residual",
        {"residual": True},
        "residual must be False unless stride is 1 and x and the result have as many channels, "
        "got stride 1, 3 and 4 channels",
    ),
]

NO_TENSORS = [
    ("merge_upsample", {"skip": [1.0]}, "skip must be a tensor, got list"),
    ("add_upsample", {"weight": None}, "weight must be a tensor, got NoneType"),
    ("refine", {"skip_bias": 0.5}, "skip_bias must be a tensor, got float"),
    ("gather_windows", {"maps": [1]}, "maps[0] must be a tensor, got int"),
    ("upsample_merge", {"skip": 5}, "skip must be a tensor, got int"),
    ("upsample_merge", {"mask_first": 1}, "mask_first must be True or False, got 1"),
    ("upsample_add", {"lateral": None}, "lateral must be a tensor, got NoneType"),
]


def on_each_backend(cases: list[tuple[str, dict[str, Any], str]]) -> Any:
    """Parametrises ``call``, ``changed`` and ``message``; the call has its backend."""
    parameters = []
    for op, changed, message in cases:
        subjects = [s for s in all_subjects([op]) if s.device == "cpu"] if op in registry.OPS else [None]
        for subject in subjects:
            name = f"{op}-{subject.backend if subject else 'all'}-{message[:40]}"
            marks = (
                pytest.mark.skip(reason=f"backend: {missing(subject.backend)}")
                if subject and missing(subject.backend)
                else ()
            )
            parameters.append(pytest.param(subject or getattr(kernels, op), op, changed, message, id=name, marks=marks))
    return pytest.mark.parametrize(("subject", "op", "changed", "message"), parameters)


@on_each_backend([(op, {}, "") for op in VALID])
def test_the_valid_arguments_are_valid(subject: Any, op: str, changed: dict[str, Any], message: str) -> None:
    subject(**VALID[op]())


@on_each_backend(CASES)
def test_refusal(subject: Any, op: str, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        subject(**VALID[op]() | changed)


@on_each_backend(NO_TENSORS)
def test_what_is_no_tensor(subject: Any, op: str, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=re.escape(message)):
        subject(**VALID[op]() | changed)


@each("refine_windows")
def test_a_refused_out_is_not_written(subject: Subject) -> None:
    out = torch.full((2, 16, 16), 7.0)
    with pytest.raises(ValueError):
        subject(**VALID["refine_windows"]() | {"out": out, "windows": windows(3)})
    assert (out == 7).all()


@pytest.mark.parametrize("op", registry.OPS)
def test_a_backend_that_there_is_not(op: str) -> None:
    names = ", ".join(map(repr, registry.BACKENDS))
    with pytest.raises(ValueError, match=re.escape(f"backend must be one of {names}, got 'none'")):
        getattr(kernels, op)(**VALID[op](), backend="none")


LACKING = [(op, name) for op in registry.OPS for name in registry.BACKENDS if not registry.backend(name).has(op)]


@pytest.mark.parametrize(("op", "backend"), LACKING)
def test_a_backend_without_the_op(op: str, backend: str) -> None:
    those = ", ".join(repr(name) for name in registry.BACKENDS if registry.backend(name).has(op))
    message = f"backend must be one that has {op} ({those}), got {backend!r}"
    with pytest.raises(ValueError, match=re.escape(message)):
        getattr(kernels, op)(**VALID[op](), backend=backend)


def as_double(x: Any, device: str) -> Any:
    """All tensors in ``x`` on ``device``, floating-point maps in double precision."""
    if isinstance(x, Windows):
        return Windows(*(field.to(device) for field in x))
    if isinstance(x, torch.Tensor):
        return x.to(device, torch.float64)
    if isinstance(x, list | tuple):
        return type(x)(as_double(y, device) for y in x)
    return x


@each()
def test_double_precision_is_taken_or_refused(subject: Subject) -> None:
    arguments = {name: as_double(x, subject.device) for name, x in VALID[subject.op]().items()}
    if subject.takes(torch.float64):
        subject(**arguments)
    else:
        message = (
            f"of dtype torch.float32, torch.float16 or torch.bfloat16 on backend {subject.backend!r}, got torch.float64"
        )
        with pytest.raises(ValueError, match=re.escape(message)):
            subject(**arguments)
