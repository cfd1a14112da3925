"""Channel attention around an upsampling: one weight for each channel, which may as well multiply the small map."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from .graph import ADD, RELU, argument, calls, module_of

MULTIPLY = (operator.mul, torch.mul, torch.multiply, "mul", "multiply")
SQUASH = (torch.sigmoid, "sigmoid", F.sigmoid, F.hardsigmoid, F.silu)
LAYERS = (nn.Sigmoid, nn.Hardsigmoid, nn.ReLU, nn.SiLU, nn.BatchNorm2d, nn.Identity)
ROWS_AND_COLUMNS = ((2, 3), (3, 2), (-2, -1), (-1, -2))


def is_average(root: nn.Module, node: fx.Node) -> bool:
    """Whether the node computes each channel's average, as a map of one row and one column."""
    module = module_of(root, node)
    if type(module) is nn.AdaptiveAvgPool2d or node.target is F.adaptive_avg_pool2d:
        size = argument(node, 1, "output_size") if module is None else module.output_size
        return size in (1, (1, 1), [1, 1])
    if not calls(node, (torch.mean, "mean")) or argument(node, 2, "keepdim") is not True:
        return False
    dim = argument(node, 1, "dim")
    return isinstance(dim, (list, tuple)) and tuple(dim) in ROWS_AND_COLUMNS


def is_pointwise(conv: nn.Conv2d) -> bool:
    """Whether the convolution maps each position by itself."""
    return conv.kernel_size == (1, 1) and conv.stride == (1, 1) and conv.padding in ((0, 0), "valid", "same")


def is_per_channel(root: nn.Module, node: Any) -> bool:
    """Whether the node's value comes from averages of channels alone, through layers that keep one row and column."""
    if not isinstance(node, fx.Node):
        return False
    if is_average(root, node):
        return True
    module = module_of(root, node)
    if isinstance(module, nn.Conv2d):
        keeps = is_pointwise(module)
    else:
        keeps = type(module) in LAYERS or calls(node, (*ADD, *MULTIPLY, *RELU, *SQUASH))
    inputs = node.all_input_nodes
    return keeps and bool(inputs) and all(is_per_channel(root, each) for each in inputs)
