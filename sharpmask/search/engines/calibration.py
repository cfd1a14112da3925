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
from ...models import DeepMask
from ..maps import as_tensor
from ..pictures import see
from ..placement import PLACEMENTS

if TYPE_CHECKING:
    import openvino

MOST: Final = 32
"""Photos that are looked at."""
SIDE: Final = 640
"""Longer side to which they are reduced."""
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
    """The graph with convolutions in int8, for ranges seen on the photos at the search's scales up to 1."""
    import nncf

    pictures = list(_pictures(model, paths))
    return nncf.quantize(
        graph, nncf.Dataset(pictures), subset_size=len(pictures), preset=nncf.QuantizationPreset.PERFORMANCE
    )


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
