"""Models as graphs that other programs run: ``export``."""

from .formats import export as export
