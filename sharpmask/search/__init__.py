"""Object proposals of whole photos."""

from .generator import ProposalGenerator
from .proposals import Proposals

__all__ = ["ProposalGenerator", "Proposals"]
