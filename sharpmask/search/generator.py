"""Full-image inference (section 3.3): all that windows share once per scale, refinement for the best N only."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from pycocotools import mask as coco_mask
from torch import Tensor

from sharpmask_kernels import Windows, encode_windows, gather_windows, topk_windows
from sharpmask_kernels.windows import STRIDE, scaled_size

from ..data.images import load_image, to_rgb
from ..geometry import CANONICAL, GREY, POSITIVE_DISTANCE, POSITIVE_OCTAVES
from ..models import DeepMask, SharpMask
from ..models.config import SearchConfig
from . import released
from .proposals import Proposals, suppress

ImageLike = str | Path | Image.Image | npt.NDArray[np.uint8]


class ImageMaps(NamedTuple):
    """What the windows of one image share: one entry per scale."""

    image: npt.NDArray[np.uint8]
    scales: list[float]
    code: list[Tensor]
    """(1, code, rows, cols)"""
    score: list[Tensor]
    """(1, 1, rows, cols)"""
    horizontals: list[list[Tensor]]
    """By scale and stage; empty without refinement."""


class Stopwatch:
    """Seconds by stage; on a GPU each stage waits for its own work."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, dict[str, float]()

    @contextmanager
    def __call__(self, stage: str) -> Any:
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


@dataclass
class ProposalGenerator:
    """Masks for whole photos.

    ``top_n`` windows are refined and returned (fewer if non-maximum suppression or an empty mask drops some);
    ``refine=False`` gives the coarse masks of the same windows. ``search`` defaults to the model's own
    settings. A photo whose longer side exceeds ``max_side`` pixels is searched as if it had that size (None: no
    limit), which bounds time and memory; masks always have the photo's own resolution.
    """

    model: DeepMask
    top_n: int = 100
    refine: bool = True
    search: SearchConfig | None = None
    max_side: int | None = 800

    def __post_init__(self) -> None:
        if self.top_n < 1:
            raise ValueError(f"top_n must be at least 1, got {self.top_n}")
        if self.max_side is not None and self.max_side < 1:
            raise ValueError(f"max_side must be at least 1 or None, got {self.max_side}")
        self.refine = self.refine and isinstance(self.model, SharpMask)
        self.search = self.search or self.model.search
        self.model.eval()

    @property
    def device(self) -> torch.device:
        return self.model.mean.device

    @property
    def _released(self) -> bool:
        """Whether windows lie where the authors' code puts them."""
        assert self.search is not None
        return self.search.geometry != "centres"

    @torch.inference_mode()
    def generate(self, image: ImageLike) -> Proposals:
        """The best proposals of a photo: a file, a PIL image or uint8 (h, w, 3) RGB.

        Raises ``DataError`` for an unusable file, ``ValueError`` for an unusable array.
        """
        watch = Stopwatch(self.device)
        maps = self.look(image, watch)
        with watch("top-N"):
            windows = topk_windows(maps.score, self.top_n)
            # Rows of score -inf were NaN.
            windows = windows.select(windows.score.isfinite())
            assert self.search is not None
            if self.search.geometry == "released-exact":
                windows = released.shift_windows(windows, [score.shape[3] for score in maps.score])
        logits = self.window_logits(maps, windows, watch)
        rles = self.paste(maps, windows, logits, watch)
        with watch("suppress"):
            # For each scale in turn, as ``windows.scale`` counts them.
            prior = [(s / min(self.search.scales)) ** -self.search.scale_prior for s in self.search.scales]
            score = windows.score.sigmoid() * torch.tensor(prior, device=self.device)[windows.scale]
            if self.search.stability:
                score = score * stability(logits)
            # By boxes: pycocotools' area fails on more than 255 masks with numpy 2.
            filled = np.flatnonzero(coco_mask.toBbox(rles)[:, 2]) if rles else np.zeros(0, dtype=np.int64)
            # The order may have changed.
            filled = filled[np.argsort(-score.cpu().numpy()[filled], kind="stable")]
            stay, scores = suppress(
                [rles[i] for i in filled],
                score.cpu().numpy()[filled],
                mask_nms=self.search.mask_nms,
                box_nms=self.search.box_nms,
                soft=self.search.soft_nms,
            )
        return Proposals(maps.image, [rles[filled[i]] for i in stay], scores, watch.seconds)

    @torch.inference_mode()
    def at_points(self, image: ImageLike, points: Sequence[tuple[float, float]], candidates: int = 16) -> Proposals:
        """One mask per point (x, y), in the points' order: of the best ``candidates`` windows whose object
        may cover the point, the best-scoring one whose refined mask does (or the best, if none does)."""
        watch = Stopwatch(self.device)
        maps = self.look(image, watch)
        score = all_scores(maps)
        scale, row, col, x, y, reach = self._grid(maps)
        chosen = []
        for px, py in _pairs("points", points, 2):
            around = torch.nonzero((x - px).abs().maximum((y - py).abs()) <= reach).flatten()
            if len(around):
                order = around[torch.argsort(score[around], descending=True, stable=True)]
            else:  # a point in a far corner: the nearest windows have to do
                order = torch.argsort(torch.hypot(x - px, y - py) / reach, stable=True)
            chosen.append(order[:candidates])
        flat = torch.cat(chosen) if chosen else torch.zeros(0, dtype=torch.int64, device=self.device)
        windows = Windows(score[flat], torch.zeros_like(flat), scale[flat], row[flat], col[flat])
        rles = self.segment(maps, windows, watch)
        height, width = maps.image.shape[:2]
        best, first = [], 0
        for (px, py), index in zip(points, chosen, strict=True):
            group = range(first, first + len(index))
            at = min(max(int(py), 0), height - 1), min(max(int(px), 0), width - 1)
            best.append(next((i for i in group if covers(rles[i], at)), first))
            first += len(index)
        scores = windows.score.sigmoid().cpu().numpy()
        return Proposals(maps.image, [rles[i] for i in best], scores[best], watch.seconds)

    @torch.inference_mode()
    def in_boxes(self, image: ImageLike, boxes: Sequence[Sequence[float]]) -> Proposals:
        """One mask per box (x, y, width, height), in the boxes' order: the window that fits the box best."""
        watch = Stopwatch(self.device)
        maps = self.look(image, watch)
        scale, row, col, x, y, reach = self._grid(maps)
        chosen = []
        for bx, by, w, h in _pairs("boxes", boxes, 4):
            # Off centre and off size, each in the unit within which training calls a window a positive.
            pixel = reach / (CANONICAL * self.model.window / 2)
            centre = torch.hypot(x - (bx + w / 2), y - (by + h / 2)) / (POSITIVE_DISTANCE * pixel)
            size = (torch.log2(2 * reach) - np.log2(max(w, h, 1e-6))).abs() / POSITIVE_OCTAVES
            chosen.append((centre.square() + size.square()).argmin())
        flat = torch.stack(chosen) if chosen else torch.zeros(0, dtype=torch.int64, device=self.device)
        score = all_scores(maps)[flat]
        windows = Windows(score, torch.zeros_like(flat), scale[flat], row[flat], col[flat])
        rles = self.segment(maps, windows, watch)
        return Proposals(maps.image, rles, score.sigmoid().cpu().numpy(), watch.seconds)

    @torch.inference_mode()
    def grow(self, image: ImageLike, index: int = 0) -> tuple[npt.NDArray[np.uint8], list[npt.NDArray[np.float32]]]:
        """How one mask grows: of the ``index``-th best window the pixels (S, S, 3) that the model sees, and one
        picture a stage: of M1 .. M4 (s .. S/2 pixels) the channel that agrees best with the final mask, then the
        final probability (S, S). Needs a model with refinement."""
        if not self.refine:
            raise ValueError("grow needs a SharpMask with refine=True")
        maps = self.look(image, Stopwatch(self.device))
        window = topk_windows(maps.score, index + 1).select(slice(index, index + 1))
        code = gather_windows(maps.code, window, 1).flatten(1)
        cells = self.model.cells
        horizontals = [
            gather_windows([levels[j] for levels in maps.horizontals], window, cells << j, step=1 << j)
            for j in range(len(maps.horizontals[0]))
        ]
        encodings: list[Tensor] = self.model.top_down(code, horizontals)  # type: ignore[operator]
        final = self.model.head(encodings[-1]).sigmoid()  # type: ignore[operator]
        stages = [best_channel(m, final).cpu().numpy() for m in encodings[:-1]]
        scale, row, col = (int(v) * factor for v, factor in zip(window[2:], (1, STRIDE, STRIDE), strict=True))
        padded = self._scaled(as_tensor(maps.image, self.device), maps.scales[scale])[0]
        # The last windows of a grid reach up to a cell beyond the border.
        padded = F.pad(padded, (0, STRIDE, 0, STRIDE), value=GREY)
        pixels = padded[:, row : row + self.model.window, col : col + self.model.window].permute(1, 2, 0)
        return (pixels * 255).round().byte().cpu().numpy(), [*stages, final[0, 0].cpu().numpy()]

    def look(self, image: ImageLike, watch: Stopwatch) -> ImageMaps:
        """The bottom-up pass over all scales."""
        pixels = as_pixels(image)
        scales = self._scales(*pixels.shape[:2])
        maps = ImageMaps(pixels, scales, [], [], [])
        picture = as_tensor(pixels, self.device)
        for scale in scales:
            with watch("resize"):
                padded = self._scaled(picture, scale)
            with watch("trunk and heads"):
                dense = self.model.dense(padded)
            maps.code.append(dense.code)
            maps.score.append(dense.score)
            if self.refine:
                with watch("horizontal"):
                    maps.horizontals.append(self.model.horizontals(dense.taps))  # type: ignore[operator]
        return maps

    def segment(self, maps: ImageMaps, windows: Windows, watch: Stopwatch) -> list[dict[str, object]]:
        """Masks of some windows as COCO RLE of the whole image."""
        return self.paste(maps, windows, self.window_logits(maps, windows, watch), watch)

    def window_logits(self, maps: ImageMaps, windows: Windows, watch: Stopwatch) -> Tensor:
        """Mask logits (N, S, S) of some windows: refined, or the coarse ones enlarged; these as they are for the
        released geometry, which resizes them but once."""
        side = self.model.window
        with watch("refine" if self.refine else "coarse masks"):
            code = gather_windows(maps.code, windows, 1).flatten(1)
            if self.refine:
                return self.model.refine_codes(code, maps.horizontals, windows)  # type: ignore[operator]
            coarse = self.model.coarse(code)[:, None]
            if self._released:
                return coarse[:, 0]
            return F.interpolate(coarse, (side, side), mode="bilinear", align_corners=False)[:, 0]

    def paste(self, maps: ImageMaps, windows: Windows, logits: Tensor, watch: Stopwatch) -> list[dict[str, object]]:
        """Mask logits (N, s, s) of windows as COCO RLE of the whole image."""
        assert self.search is not None
        with watch("encode"):
            size = maps.image.shape[0], maps.image.shape[1]
            if self._released:
                window, threshold = self.model.window, self.search.threshold
                return released.encode_masks(logits, windows, size, maps.scales, window, threshold)
            return encode_windows(logits, windows, size, maps.scales, threshold=self.search.threshold)

    def _scales(self, height: int, width: int) -> list[float]:
        """The search's scales, for a photo beyond ``max_side`` relative to that size."""
        assert self.search is not None
        limit = self.max_side or max(height, width)
        return [s * min(1.0, limit / max(height, width)) for s in self.search.scales]

    def _scaled(self, picture: Tensor, scale: float) -> Tensor:
        """The picture (1, 3, h, w) at ``scale`` with half a window of grey around."""
        if self._released:
            scaled = released.resize(picture, scale)
        else:
            size = scaled_size(picture.shape[2], picture.shape[3], scale)
            scaled = F.interpolate(picture, size, mode="bilinear", align_corners=False, antialias=True)
        pad = self.model.window // 2
        padded = F.pad(scaled, (pad,) * 4, value=GREY)
        return padded.contiguous(memory_format=torch.channels_last)

    def _grid(self, maps: ImageMaps) -> tuple[Tensor, ...]:
        """Of every window, in the order of ``topk_windows``: scale, row, col, its centre x, y and the half
        side of its canonical object, the last three in image pixels."""
        parts = []
        height, width = maps.image.shape[:2]
        for i, score in enumerate(maps.score):
            rows, cols = score.shape[2:]
            row, col = torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")
            row, col = row.flatten(), col.flatten()
            tall, wide = scaled_size(height, width, maps.scales[i])
            x, y = col * (STRIDE * width / wide), row * (STRIDE * height / tall)
            reach = torch.full_like(x, CANONICAL * self.model.window / 2 * max(height, width) / max(tall, wide))
            parts.append((torch.full_like(row, i), row, col, x, y, reach))
        return tuple(torch.cat(p).to(self.device) for p in zip(*parts, strict=True))


def as_pixels(image: ImageLike) -> npt.NDArray[np.uint8]:
    """A photo as uint8 (h, w, 3) RGB; a PIL image of any mode is converted and turned as a file would be."""
    if isinstance(image, str | Path):
        return load_image(image)
    if isinstance(image, Image.Image):
        return np.array(to_rgb(ImageOps.exif_transpose(image), "image"))
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or min(image.shape) < 1:
        raise ValueError(f"image must be uint8 (h, w, 3), got {image.dtype} {image.shape}")
    # An array turned from BGR is a view with a negative stride, which PyTorch does not take.
    return np.ascontiguousarray(image)


def as_tensor(pixels: npt.NDArray[np.uint8], device: torch.device) -> Tensor:
    """Pixels (h, w, 3) in 0..255 to (1, 3, h, w) in [0, 1]."""
    return torch.tensor(pixels, device=device).permute(2, 0, 1)[None].float() / 255


def stability(logits: Tensor) -> Tensor:
    """How sharp each mask (N, S, S) is, in [0, 1]: its pixels of logit above 0 over those above -2 (probability
    .5 and .12), as Segment Anything judges masks by how little they change with the threshold; 0 if empty."""
    sharp, blurred = ((logits > limit).flatten(1).sum(1) for limit in (0.0, -2.0))
    return sharp / blurred.clamp(min=1)


def all_scores(maps: ImageMaps) -> Tensor:
    """Score logits of all windows, in the order of ``topk_windows``; NaN ranks last."""
    score = torch.cat([s.flatten() for s in maps.score]).float()
    return torch.where(score.isnan(), -torch.inf, score)


def best_channel(encoding: Tensor, mask: Tensor) -> Tensor:
    """Of an encoding (1, C, h, w) the channel (h, w) most correlated with the mask (1, 1, H, W), signed alike."""
    small = F.adaptive_avg_pool2d(mask, (encoding.shape[2], encoding.shape[3])).flatten()
    rows = torch.cat([encoding[0].flatten(1), small[None]])
    # A dead channel is constant and has no correlation.
    correlation = torch.corrcoef(rows)[-1, :-1].nan_to_num()
    best = int(correlation.abs().argmax())
    return encoding[0, best] * (1.0 if correlation[best] >= 0 else -1.0)


def covers(rle: dict[str, object], at: tuple[int, int]) -> bool:
    """Whether the mask contains the pixel (row, col)."""
    return bool(coco_mask.decode(rle)[at])


def _pairs(name: str, values: Sequence[Sequence[float]], length: int) -> list[Sequence[float]]:
    for i, value in enumerate(values):
        if len(value) != length or not np.isfinite(value).all():
            raise ValueError(f"{name}[{i}] must be {length} finite numbers, got {value}")
    return list(values)
