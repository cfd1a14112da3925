"""The meaning of every op, in plain PyTorch and numpy: correct on any device, unhurried, deterministic.

Arguments have been checked by :mod:`sharpmask_kernels.functional`, which documents the ops. The signatures of the
functions here define the schemas of ``torch.ops.sharpmask`` (:mod:`sharpmask_kernels.ops`). PyTorch can differentiate
the forward functions: they are what exported graphs hold. The backward functions compute the same gradients from what
the ops save.
"""

from __future__ import annotations

from ...registry import OPS, Backend

BACKEND = Backend("reference", ops=OPS)
