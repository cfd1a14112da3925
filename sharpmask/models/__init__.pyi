from .build import build_model as build_model
from .build import from_config as from_config
from .config import ModelConfig as ModelConfig
from .config import SearchConfig as SearchConfig
from .deepmask import DeepMask as DeepMask
from .deepmask import DenseMaps as DenseMaps
from .sharpmask import Refined as Refined
from .sharpmask import SharpMask as SharpMask
