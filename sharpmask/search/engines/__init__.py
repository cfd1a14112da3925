"""The engines of the bottom-up pass. Each gives a model's form for inference in a form of its own."""

from __future__ import annotations

from ...engines import Engine, Precision, check_precision
from ...errors import DataError
from ...models import DeepMask
from ...models.inference import InferenceForm


def check_engine(model: DeepMask, engine: Engine, precision: Precision) -> None:
    """Raise ``DataError`` if the engine cannot run the model here in this precision, or would gain nothing by it."""
    check_precision(engine, precision)
    if engine == "openvino":
        raise DataError("engine must be torch, got openvino, which is not ready yet")


def form_of(model: DeepMask, engine: Engine, precision: Precision) -> InferenceForm:
    """The form in which the engine runs the model. It is kept until the model changes."""
    return model.for_inference()
