"""Quantization of a graph to int8 by NNCF, with ranges that photos show."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
import torch

from ...data.photos import find_photos
from ...errors import DataError
from ...models import DeepMask
from ..maps import as_tensor
from ..pictures import see
from ..placement import PLACEMENTS
from .core import core

if TYPE_CHECKING:
    import openvino

MOST: Final = 32
"""Photos that are looked at."""
SIDE: Final = 640
"""Longer side to which they are reduced."""
MOST_OFF: Final = 0.9
"""By which part of its norm a map may change."""
OWN: Final = Path(str(files("sharpmask") / "assets" / "coffee.jpg"))


def photos_in(path: Path | None) -> list[Path]:
    """The photos of a folder, at most ``MOST`` from all over it; a single one; or the one that comes with the package.

    Raises ``DataError`` where there is none.
    """
    paths = [photo.path for photo in find_photos([path or OWN]).photos]
    return paths[:: -(-len(paths) // MOST)]


def digest(paths: Sequence[Path]) -> str:
    """A hash of the photos' contents."""
    return hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in paths)).hexdigest()


def quantized(graph: openvino.Model, model: DeepMask, paths: Sequence[Path]) -> openvino.Model:
    """The graph with convolutions in int8, for ranges seen on the photos at the search's scales up to 1.

    Raises ``DataError`` where its maps have little in common with those in fp32.
    """
    import nncf

    pictures = list(_pictures(model, paths))
    made = nncf.quantize(
        graph, nncf.Dataset(pictures), subset_size=len(pictures), preset=nncf.QuantizationPreset.PERFORMANCE
    )
    check_maps(graph, made, pictures[0])
    return made


def check_maps(graph: openvino.Model, made: openvino.Model, picture: npt.NDArray[np.float32]) -> None:
    """Raise ``DataError`` if an output of a quantized graph differs from that of the graph by 90 % of its norm.

    OpenVINO 2026.4 computes zeros in int8 after some convolutions without biases.
    """
    plain, quantized = (_outputs(each, picture) for each in (graph, made))
    worst = max(
        float(np.linalg.norm(a - b) / max(np.linalg.norm(a), 1e-12)) for a, b in zip(plain, quantized, strict=True)
    )
    if not worst < MOST_OFF:
        raise DataError(f"precision must be fp32 for this model, got int8, in which its maps are {worst:.0%} off")


def _outputs(graph: openvino.Model, picture: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
    compiled = core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled.create_infer_request().infer({0: picture})
    return [np.array(found[i]) for i in range(len(compiled.outputs))]


def _pictures(model: DeepMask, paths: Sequence[Path]) -> Iterator[npt.NDArray[np.float32]]:
    form, placement = model.for_inference(), PLACEMENTS[model.search.geometry](model.window)
    for path in paths:
        picture = see(path, "turned", SIDE)
        pixels = as_tensor(picture.pixels, torch.device("cpu"))
        height, width = picture.pixels.shape[:2]
        for scale in model.search.scales:
            if scale <= 1:
                resized = placement.resize(pixels, scale, (height, width))
                yield form.framed(resized).permute(0, 2, 3, 1).contiguous().numpy()
