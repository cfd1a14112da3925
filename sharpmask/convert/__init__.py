"""The authors' released models, and those of the public PyTorch port, as models of this package."""

from .released import Converted, convert

__all__ = ["Converted", "convert"]
