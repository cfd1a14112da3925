"""Proposals of very many photos, on one machine or a cluster, by Ray.

Ray, pyarrow and PyTorch are imported when they are needed.
"""

from .results import Summary
from .run import propose

__all__ = ["Summary", "propose"]
