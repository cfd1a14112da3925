"""The documented path of :class:`ProposalGenerator`, whose code is in :mod:`sharpmask.search`."""

from .search import ProposalGenerator

__all__ = ["ProposalGenerator"]
