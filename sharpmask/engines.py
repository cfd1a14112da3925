"""Engines: what computes the bottom-up pass of a search, and in which precision. It needs no PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from .errors import DataError

Engine = Literal["torch", "compile", "openvino"]
Precision = Literal["fp32", "bf16", "fp16", "int8"]
ExportFormat = Literal["onnx", "openvino", "torch", "aoti"]
"""What other programs run: see :mod:`sharpmask.export`."""

PRECISIONS: Final[dict[Engine, tuple[Precision, ...]]] = {
    "torch": ("fp32", "bf16", "fp16"),
    "compile": ("fp32", "bf16", "fp16"),
    "openvino": ("fp32", "bf16", "int8"),
}
"""The precisions of each engine."""


def check_precision(engine: Engine, precision: Precision, calibration: Path | None) -> None:
    """Raise ``DataError`` for a precision that the engine does not have, and for ``calibration`` without int8."""
    if precision not in PRECISIONS[engine]:
        others = [name for name, known in PRECISIONS.items() if precision in known]
        raise DataError(
            f"precision must be {' or '.join(PRECISIONS[engine])} with engine {engine}, got {precision}; "
            f"{precision} needs engine {' or '.join(others)}"
        )
    if calibration is not None and precision != "int8":
        raise DataError(f"calibration must be of precision int8, got {precision}; leave it out, or take int8")
    if calibration is not None and not Path(calibration).exists():
        raise DataError(f"calibration must be a photo or a folder of photos, got {calibration}, which does not exist")
