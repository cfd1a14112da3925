"""DeepMask and SharpMask as standard PyTorch modules over :mod:`sharpmask_kernels`."""

from .config import ModelConfig, build_model
from .deepmask import DeepMask, DenseMaps
from .sharpmask import Refined, SharpMask

__all__ = ["DeepMask", "DenseMaps", "ModelConfig", "Refined", "SharpMask", "build_model"]
