"""Training in the paper's two stages, or of all heads at once on dense tiles."""

from .loop import train
from .stages import TrainConfig, stage_defaults

__all__ = ["TrainConfig", "stage_defaults", "train"]
