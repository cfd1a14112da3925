"""The public functions, one for each op. Each checks its arguments, chooses the backend and calls the op.

Maps are (batch, channels, height, width) tensors, fp32, fp16, bf16 or fp64. Convolutions are 3x3 with
stride 1 and padding 1. Names follow SharpMask (Pinheiro, Lin, Collobert, Dollár, ECCV 2016), section 3:
``feature`` F is a map of the bottom-up pass, ``skip`` S = ReLU(Conv(F)), ``mask`` M the mask encoding.

Arguments shared by all: ``upsample`` is "bilinear" (the paper; half-pixel centres) or "nearest" (the released
code); ``padding_mode`` is "zeros" (as ``nn.Conv2d``) or "replicate" (what SharpMask models use);
``backend`` names one backend, strictly, or is None: see :mod:`sharpmask_kernels.dispatch`. Bad arguments raise
``ValueError``, or ``TypeError`` where a tensor is due and something else came; a backend that cannot run here raises
``RuntimeError``.

Under autocast, the convolutions' arguments are cast as those of a convolution are: :func:`merge_upsample`,
:func:`refine`, :func:`refine_windows` and :func:`upsample_merge` compute in the autocast dtype, :func:`add_upsample` in
what the sum of ``horizontal`` and a convolution would have, :func:`upsample_add` in the wider dtype of its maps. fp64
is left alone. While a model is exported, plain PyTorch operations take the place of the ops, so that the exported graph
needs nothing from here.
"""

from .ops.calling import ConvParameters
from .ops.decoder import upsample_add, upsample_merge
from .ops.encode_windows import encode_windows
from .ops.gather_windows import gather_windows
from .ops.horizontal import horizontal
from .ops.inverted_residual import inverted_residual
from .ops.refine_windows import refine_windows
from .ops.refinement import add_upsample, merge_upsample, refine
from .ops.topk_windows import topk_windows

__all__ = [
    "ConvParameters",
    "add_upsample",
    "encode_windows",
    "gather_windows",
    "horizontal",
    "inverted_residual",
    "merge_upsample",
    "refine",
    "refine_windows",
    "topk_windows",
    "upsample_add",
    "upsample_merge",
]
