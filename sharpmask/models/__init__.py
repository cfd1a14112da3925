"""DeepMask and SharpMask as standard PyTorch modules over :mod:`sharpmask_kernels`."""

from .build import build_model, from_config
from .config import ModelConfig, SearchConfig
from .deepmask import DeepMask, DenseMaps
from .sharpmask import Refined, SharpMask

__all__ = [
    "DeepMask",
    "DenseMaps",
    "ModelConfig",
    "Refined",
    "SearchConfig",
    "SharpMask",
    "build_model",
    "from_config",
]
