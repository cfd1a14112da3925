"""The engines of the bottom-up pass. Each gives a model's form for inference in a form of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch

from ...engines import Engine, Precision, check_precision
from ...errors import DataError
from ...models import DeepMask
from ...models.inference import InferenceForm
from . import compiled, openvino

CAST: Final[dict[Precision, torch.dtype | None]] = {
    "fp32": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int8": None,
}
"""What PyTorch casts to in a precision."""


def check_engine(model: DeepMask, engine: Engine, precision: Precision, calibration: Path | None) -> None:
    """Raise ``DataError`` if the engine cannot run the model here in this precision, or would gain nothing by it."""
    check_precision(engine, precision, calibration)
    if engine == "openvino":
        openvino.check(model, precision)
    elif engine == "compile":
        compiled.check(model)
    elif CAST[precision] is not None and model.mean.device.type != "cuda":
        raise DataError(
            f"precision must be fp32 with engine torch on {model.mean.device.type}, got {precision}, from which only "
            "GPUs gain; take fp32, device cuda or engine openvino"
        )


def form_of(
    model: DeepMask, engine: Engine, precision: Precision, *, calibration: Path | None = None, refine: bool = True
) -> InferenceForm:
    """The form in which the engine runs the model. It is kept until the model changes.

    ``calibration``: a folder of photos, or one, for int8. ``refine``: whether the trunk's maps are needed.
    """
    if engine == "openvino":
        return openvino.form_of(model, precision, calibration, refine)
    return compiled.form_of(model) if engine == "compile" else model.for_inference()
