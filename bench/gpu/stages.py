"""The table of stages."""

from __future__ import annotations

from . import measure, photo, prove, sanitize, tune
from .steps import Stage, judged, no_tables

STAGES = [
    Stage("prove", "is everything right?", 4, prove.steps, prove.judge, no_tables, at_once=prove.AT_ONCE),
    Stage("sanitize", "is every access in order?", 2, sanitize.steps, sanitize.judge, no_tables, sanitize.AT_ONCE),
    Stage(measure.NAME, "how fast is it?", 4, measure.steps, judged, measure.tables),
    Stage("tune", "which configurations are fastest?", 4, tune.steps, judged, tune.tables),
    Stage("photo", "how long does a photo take?", 1, photo.steps, judged, photo.tables),
]
"""In the order in which they run."""
