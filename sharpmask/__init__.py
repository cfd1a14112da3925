"""SharpMask: object masks from photos, refined top-down (Pinheiro, Lin, Collobert, Dollár, ECCV 2016)."""

from sharpmask_kernels import __version__ as __version__

from .checkpoint import load_model, save_model
from .errors import DataError
from .models import DeepMask, ModelConfig, SearchConfig, SharpMask, build_model
from .search import ProposalGenerator, Proposals

__all__ = [
    "DataError",
    "DeepMask",
    "ModelConfig",
    "ProposalGenerator",
    "Proposals",
    "SearchConfig",
    "SharpMask",
    "build_model",
    "load_model",
    "save_model",
]
