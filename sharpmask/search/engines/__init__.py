"""The engines of the bottom-up pass. Each gives a model's form for inference in a form of its own."""

from __future__ import annotations

from pathlib import Path

from ...engines import Engine, Precision, check_precision
from ...models import DeepMask
from ...models.inference import InferenceForm
from . import openvino


def check_engine(model: DeepMask, engine: Engine, precision: Precision, calibration: Path | None) -> None:
    """Raise ``DataError`` if the engine cannot run the model here in this precision, or would gain nothing by it."""
    check_precision(engine, precision, calibration)
    if engine == "openvino":
        openvino.check(model, precision)


def form_of(
    model: DeepMask, engine: Engine, precision: Precision, *, calibration: Path | None = None, refine: bool = True
) -> InferenceForm:
    """The form in which the engine runs the model. It is kept until the model changes.

    ``calibration``: a folder of photos, or one, for int8. ``refine``: whether the trunk's maps are needed.
    """
    if engine == "openvino":
        return openvino.form_of(model, precision, calibration, refine)
    return model.for_inference()
