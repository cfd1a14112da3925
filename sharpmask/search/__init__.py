"""Object proposals of whole photos, and masks for clicks and boxes."""

from .generator import ProposalGenerator
from .predictor import MaskPredictor
from .proposals import Proposals

__all__ = ["MaskPredictor", "ProposalGenerator", "Proposals"]
