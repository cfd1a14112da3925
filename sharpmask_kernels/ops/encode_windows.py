"""``encode_windows``: masks pasted into their image and run-length encoded."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from .. import checks, dispatch
from ..backends.reference import encode_windows as reference
from ..windows import Windows
from . import calling
from .library import Case, define, scattered_windows


def encode_windows(
    logits: Tensor,
    windows: Windows,
    image_size: tuple[int, int],
    scales: Sequence[float],
    *,
    threshold: float = 0.2,
    backend: str | None = None,
) -> list[dict[str, Any]]:
    """Paste every window's mask into its image and run-length encode it.

    logits (N, S, S), S even. All windows are of ONE image of ``image_size`` (h, w); ``windows.image`` is
    ignored. ``scales``: the pyramid's scales. An image pixel is foreground where it lies in the window and
    the bilinear sample of the logits there exceeds log(t / (1 - t)) for the probability ``threshold`` t.

    -> COCO RLE ``{"size": [h, w], "counts": bytes}`` per window. Ends on the host, so it waits for the device. Fake
    tensors have no values: for them, ``counts`` is empty.

    Raises ``RuntimeError`` inside a transform of ``torch.func`` and while a model is exported, for the same reason.
    """
    if torch._C._are_functorch_transforms_active() or calling.exporting():
        raise RuntimeError("encode_windows ends on the host: call it outside torch.func, vmap and exported models")
    threshold = checks.probability("threshold", threshold)
    image_size = _checked_image_size(image_size)
    scales = _checked_scales(scales, image_size)
    shape = _checked_shape(logits)
    checks.windows(windows, logits.device, len(scales), None)
    checks.count(windows, shape[0], "mask")
    size = list(image_size)
    if isinstance(logits, FakeTensor):
        return [{"size": size.copy(), "counts": b""} for _ in range(shape[0])]
    chosen = dispatch.choose("encode_windows", logits, backend)
    cells = (windows.scale, windows.row, windows.col)
    counts, offsets = _ENCODE_WINDOWS(logits.detach(), *cells, size, scales, threshold, chosen)
    data, ends = counts.numpy().tobytes(), offsets.tolist()
    return [{"size": size.copy(), "counts": data[a:b]} for a, b in itertools.pairwise(ends)]


def _checked_shape(logits: Tensor) -> torch.Size:
    checks.tensor("logits", logits)
    shape = checks.shape_of("logits", logits)
    if len(shape) != 3 or shape[1] != shape[2] or shape[1] < 2 or shape[1] % 2:
        raise checks.refusal("logits", "of shape (N, S, S) with S even", tuple(shape))
    checks.floating_point("logits", logits)
    if logits.device.type == "meta":
        raise checks.refusal("logits", "on a device that holds values", "meta")
    return shape


def _checked_image_size(image_size: tuple[int, int]) -> tuple[int, int]:
    height, width = checks.pair("image_size", image_size, "a pair (height, width)")
    height = checks.integer("image_size[0]", height, least=None, most=None)
    width = checks.integer("image_size[1]", width, least=None, most=None)
    if height < 1 or width < 1:
        raise checks.refusal("image_size", "at least 1x1", (height, width))
    if height * width >= 1 << 32:  # COCO counts in 32 bits
        raise checks.refusal("image_size", "of fewer than 2^32 pixels", (height, width))
    return height, width


def _checked_scales(scales: Sequence[float], image_size: tuple[int, int]) -> list[float]:
    found = checks.listed("scales", scales)
    for i, scale in enumerate(found):
        if type(scale) is not float:
            found[i] = checks.number(f"scales[{i}]", scale)
    if not all(0 < scale < math.inf for scale in found):
        raise checks.refusal("scales", "positive", found)
    if found and math.isinf(max(found) * max(image_size)):
        raise checks.refusal("scales", "small enough for scaled sides that a float can hold", found)
    return found


def _fake(a: Any) -> tuple[Tensor, Tensor]:
    count = torch.library.get_ctx().new_dynamic_size()
    counts = torch.empty(count, dtype=torch.uint8, device="cpu")
    return counts, torch.empty(a.logits.shape[0] + 1, dtype=torch.int64, device="cpu")


_ENCODE_WINDOWS = define(reference.encode_windows, _fake)


def _cases(random: Callable[..., Tensor], device: torch.device) -> Iterator[tuple[str, Case]]:
    windows = scattered_windows(device)

    def run(backend: str, logits: Tensor) -> Tensor:
        encoded = encode_windows(logits, windows, (45, 61), [0.5, 0.8], backend=backend)
        # Each counts string ends with a byte that no string contains.
        return torch.frombuffer(bytearray(b"".join(b"%b\0" % rle["counts"] for rle in encoded)), dtype=torch.uint8)

    yield "logits", Case([10 * random(len(windows.row), 32, 32)], run)


CASES = {"encode_windows": _cases}
