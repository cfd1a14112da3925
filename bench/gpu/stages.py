"""The table of stages."""

from __future__ import annotations

from . import compiling, measure, photo, prove, sanitize, tune
from .steps import Stage, judged, no_tables

STAGES = [
    Stage("prove", "is everything right?", 5, prove.steps, prove.judge, no_tables, at_once=prove.AT_ONCE),
    Stage("sanitize", "is every access in order?", 2, sanitize.steps, sanitize.judge, no_tables, sanitize.AT_ONCE),
    Stage(measure.NAME, "how fast is it?", 4, measure.steps, judged, measure.tables, at_once=compiling.AT_ONCE),
    Stage("photo", "how long does a photo take?", 2, photo.steps, judged, photo.tables),
    Stage("tune", "which configurations are fastest?", 2, tune.steps, judged, tune.tables),
]
"""In the order in which they run."""
