"""merge_upsample, add_upsample and refine in plain PyTorch, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import layout
from ..needs import AddNeeds, ConvNeeds, MergeNeeds, RefineNeeds

# The pieces, each with its backward.


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None, padding_mode: str) -> Tensor:
    """3x3 convolution of stride 1 that keeps the size, its border as ``padding_mode`` says."""
    if padding_mode == "zeros":
        return F.conv2d(x, weight, bias, padding=1)
    return F.conv2d(replicate(x), weight, bias)


def replicate(x: Tensor) -> Tensor:
    return F.pad(x, (1, 1, 1, 1), mode="replicate")


def conv3x3_backward(
    grad: Tensor, x: Tensor, weight: Tensor, padding_mode: str, needs: ConvNeeds
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias, of those that ``needs`` asks for (the others are None)."""
    zeros = padding_mode == "zeros"
    d_x, d_weight, d_bias = torch.ops.aten.convolution_backward(
        grad,
        x if zeros else replicate(x),
        weight,
        [weight.shape[0]],
        stride=[1, 1],
        padding=[1, 1] if zeros else [0, 0],
        dilation=[1, 1],
        transposed=False,
        output_padding=[0, 0],
        groups=1,
        output_mask=list(needs),
    )
    return d_x if zeros or d_x is None else replicate_backward(d_x), d_weight, d_bias


def replicate_backward(grad: Tensor) -> Tensor:
    """Adds the border's gradient to the cells that the border was copied from. PyTorch's own uses atomics on a GPU."""
    for dim in (-2, -1):
        length = grad.shape[dim]
        inner = grad.narrow(dim, 1, length - 2).clone()
        inner.narrow(dim, 0, 1).add_(grad.narrow(dim, 0, 1))
        inner.narrow(dim, -1, 1).add_(grad.narrow(dim, -1, 1))
        grad = inner
    return grad


def up2(x: Tensor, mode: str) -> Tensor:
    """Twice the height and width, nearest or bilinear: of half-pixel centres, or of aligned corners."""
    if mode == "nearest":
        return F.interpolate(x, scale_factor=2, mode="nearest")
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=mode == "bilinear_corners")


def up2_backward(grad: Tensor, mode: str) -> Tensor:
    """The gradient of :func:`up2`, in fp32 or fp64: each cell sums the at most four rows and columns that it went into.

    PyTorch's own adds with atomics on a GPU, in an order that differs from run to run, and so do the result's bits.
    """
    grad = grad if grad.dtype == torch.float64 else grad.float()
    for dim in (-2, -1):
        if mode == "bilinear_corners":
            grad = _corners_backward(grad.movedim(dim, -1)).movedim(-1, dim)
            continue
        # Not unflatten, which autograd's own vmap does not know.
        even, odd = (grad.movedim(dim, -1)[..., first::2].movedim(-1, dim) for first in (0, 1))
        here = even + odd
        if mode == "bilinear":
            length = here.shape[dim]
            here *= 0.75
            # The neighbours' quarters; beyond the border they fall back onto the border cell.
            here.narrow(dim, 1, length - 1).add_(odd.narrow(dim, 0, length - 1), alpha=0.25)
            here.narrow(dim, 0, length - 1).add_(even.narrow(dim, 1, length - 1), alpha=0.25)
            here.narrow(dim, 0, 1).add_(even.narrow(dim, 0, 1), alpha=0.25)
            here.narrow(dim, -1, 1).add_(odd.narrow(dim, -1, 1), alpha=0.25)
        grad = here
    return grad


def _corners_backward(grad: Tensor) -> Tensor:
    """The gradient of upsampling the last dimension by "bilinear_corners".

    Of L cells, cell i lies at i * (2 L - 1) / (L - 1) among the 2 L upsampled ones. It went into those less far from it
    than its neighbours, at most five, with a share that falls linearly.
    """
    length = grad.shape[-1] // 2
    last, steps = 2 * length - 1, max(length - 1, 1)
    cells = torch.arange(length, device=grad.device)
    first = (cells - 1) * last // steps + 1
    total = torch.zeros_like(grad[..., :length])
    for place in (first + i for i in range(5)):
        share = 1 - (place * (length - 1) - cells * last).abs().to(grad.dtype) / last
        inside = (place >= 0) & (place <= last) & (share > 0)
        total = total + torch.where(inside, share * grad.index_select(-1, place.clamp(0, last)), 0)
    return total


def relu_up2(x: Tensor, upsample: str, memory_format: torch.memory_format, save: bool) -> tuple[Tensor, Tensor]:
    """up2(ReLU(x)), and the bits of the values that ReLU let through (none if not ``save``)."""
    active = pack_bits(~(x <= 0)) if save else x.new_empty(0, dtype=torch.uint8)
    return layout.arranged(up2(F.relu(x), upsample), memory_format), active


def relu_up2_backward(grad: Tensor, active: Tensor, upsample: str) -> Tensor:
    bits = unpack_bits(active, grad.shape[-1] // 2)
    return torch.where(bits, up2_backward(grad, upsample), 0).to(grad.dtype)


def pack_bits(bits: Tensor) -> Tensor:
    """Booleans (..., W) to bytes (..., ceil(W / 8)), the first of eight in the lowest bit."""
    bits = F.pad(bits, (0, -bits.shape[-1] % 8)).unflatten(-1, (-1, 8)).to(torch.uint8)
    return (bits << torch.arange(8, dtype=torch.uint8, device=bits.device)).sum(-1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, width: int) -> Tensor:
    """The inverse of :func:`pack_bits`, (..., ceil(width / 8)) to booleans (..., width)."""
    bits = packed[..., None] >> torch.arange(8, dtype=torch.uint8, device=packed.device) & 1
    return bits.flatten(-2)[..., :width].bool()


def apart(x: Tensor, sizes: list[int], dim: int) -> list[Tensor]:
    """The parts of ``x``, copied, because no output of an op may share memory with another."""
    return [part.clone() for part in x.split(sizes, dim)]


def asked(gradients: Sequence[Tensor | None], needs: Sequence[bool], channels_last: bool) -> list[Tensor]:
    """The gradients that ``needs`` asks for, those of maps and weights in the format chosen."""
    chosen = [g for g, need in zip(gradients, needs, strict=True) if need and g is not None]
    return [layout.arranged(g, layout.chosen(channels_last and g.ndim == 4)) for g in chosen]


# The ops.


def merge_upsample(
    skip: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None, upsample: str, padding_mode: str, save: bool
) -> tuple[Tensor, Tensor]:
    merged = conv3x3(torch.cat([skip, mask], dim=1), weight, bias, padding_mode)
    return relu_up2(merged, upsample, layout.memory_format(skip, mask), save)


def merge_upsample_backward(
    grad: Tensor,
    active: Tensor,
    skip: Tensor,
    mask: Tensor,
    weight: Tensor,
    upsample: str,
    padding_mode: str,
    channels_last: bool,
    needs: Sequence[bool],
) -> list[Tensor]:
    asked_for = MergeNeeds(*needs)
    grad = relu_up2_backward(grad, active, upsample)
    joined = torch.cat([skip, mask], dim=1)
    wanted = ConvNeeds(asked_for.skip or asked_for.mask, asked_for.weight, asked_for.bias)
    d_joined, d_weight, d_bias = conv3x3_backward(grad, joined, weight, padding_mode, wanted)
    d_skip, d_mask = apart(d_joined, [skip.shape[1], mask.shape[1]], dim=1) if wanted.input else (None, None)
    return asked([d_skip, d_mask, d_weight, d_bias], needs, channels_last)


def refine(
    feature: Tensor,
    mask: Tensor,
    skip_weight: Tensor,
    skip_bias: Tensor | None,
    merge_weight: Tensor,
    merge_bias: Tensor | None,
    upsample: str,
    padding_mode: str,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    memory_format = layout.memory_format(feature, mask)
    skip = layout.arranged(F.relu(conv3x3(feature, skip_weight, skip_bias, padding_mode)), memory_format)
    out, active = merge_upsample(skip, mask, merge_weight, merge_bias, upsample, padding_mode, save)
    return layout.arranged(out, memory_format), skip if save else skip.new_empty(0), active


def refine_backward(
    grad: Tensor,
    active: Tensor,
    skip: Tensor,
    feature: Tensor,
    mask: Tensor,
    skip_weight: Tensor,
    merge_weight: Tensor,
    upsample: str,
    padding_mode: str,
    channels_last: bool,
    needs: Sequence[bool],
) -> list[Tensor]:
    asked_for = RefineNeeds(*needs)
    wanted = asked_for.merge
    merged = iter(
        merge_upsample_backward(grad, active, skip, mask, merge_weight, upsample, padding_mode, channels_last, wanted)
    )
    d_skip, d_mask, d_merge_weight, d_merge_bias = (next(merged) if need else None for need in wanted)
    d_feature = d_skip_weight = d_skip_bias = None
    if d_skip is not None:
        d_skip = torch.where(skip <= 0, 0, d_skip)
        d_feature, d_skip_weight, d_skip_bias = conv3x3_backward(
            d_skip, feature, skip_weight, padding_mode, asked_for.convolution
        )
    gradients = [d_feature, d_mask, d_skip_weight, d_skip_bias, d_merge_weight, d_merge_bias]
    return asked(gradients, needs, channels_last)


def add_upsample(
    horizontal: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None, upsample: str, padding_mode: str, save: bool
) -> tuple[Tensor, Tensor]:
    merged = horizontal + conv3x3(mask, weight, bias, padding_mode)
    return relu_up2(merged, upsample, layout.memory_format(horizontal, mask), save)


def add_upsample_backward(
    grad: Tensor,
    active: Tensor,
    mask: Tensor,
    weight: Tensor,
    upsample: str,
    padding_mode: str,
    channels_last: bool,
    needs: Sequence[bool],
) -> list[Tensor]:
    grad = relu_up2_backward(grad, active, upsample)
    gradients = [grad, *conv3x3_backward(grad, mask, weight, padding_mode, AddNeeds(*needs).convolution)]
    return asked(gradients, needs, channels_last)
