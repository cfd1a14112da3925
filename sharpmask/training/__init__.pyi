from .loop import Ended as Ended
from .loop import train as train
from .stages import TrainConfig as TrainConfig
from .stages import stage_defaults as stage_defaults
