"""DeepMask and SharpMask as standard PyTorch modules over :mod:`sharpmask_kernels`."""

from .deepmask import DeepMask, DenseMaps
from .sharpmask import Refined, SharpMask
from .zoo import ModelConfig, build_model

__all__ = ["DeepMask", "DenseMaps", "ModelConfig", "Refined", "SharpMask", "build_model"]
