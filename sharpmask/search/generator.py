"""Full-image inference (section 3.3): dense maps once per scale, refinement for the best N windows only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from torch import Tensor

from sharpmask_kernels import Windows, gather_windows, topk_windows
from sharpmask_kernels.windows import STRIDE

from ..data.orientation import Exif
from ..engines import Engine, Precision
from ..errors import DataError
from ..geometry import GREY
from ..models import DeepMask, SearchConfig, SharpMask
from ..models.inference import InferenceForm, Tap, made, recompute_weights
from ..ranges import Range, Settings, number, shown
from .engines import CAST, check_engine, form_of
from .maps import Choice, Grid, ImageMaps, Stopwatch, as_tensor, grid_of
from .pictures import ImageLike, Picture, see
from .placement import PLACEMENTS, Placement
from .prompts import as_boxes, as_points, clip_to_box, window_in_box, windows_at_point
from .proposals import Proposals, Rle, suppress

MOST_PIXELS = 1 << 25
"""Most pixels of a photo at one scale."""


@dataclass
class ProposalGenerator(Settings):
    """Masks for whole photos.

    ``top_n`` windows are refined and returned (fewer if non-maximum suppression or an empty mask drops some);
    ``refine=False`` gives the coarse masks of the same windows. ``search`` defaults to the model's own
    settings. A photo whose longer side exceeds ``max_side`` pixels is searched as if it had that size (None: no
    limit), which bounds time and memory; masks always have the photo's own resolution. A file or a PIL image is
    ``turned`` by its EXIF orientation, as viewers show it, unless ``exif`` is ``stored``; all positions are in the
    pixels that it names. ``engine`` computes the maps that windows share, in ``precision``, whose
    int8 takes its ranges from the photos in the folder ``calibration`` (docs/engines.md).

    Raises ``DataError`` for an engine or a precision that cannot be had here.
    """

    model: DeepMask
    top_n: Annotated[int, Range(1, 100_000)] = 100
    refine: bool = True
    search: SearchConfig | None = None
    max_side: Annotated[int, Range(1, 100_000)] | None = 800
    exif: Exif = "turned"
    engine: Engine = "torch"
    precision: Precision = "fp32"
    calibration: Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.model, DeepMask):
            raise ValueError(f"model must be a DeepMask or SharpMask, as load_model gives, got {shown(self.model)}")
        self.refine = self.refine and isinstance(self.model, SharpMask)
        self.search = self.search or self.model.search
        self.model.eval()
        check_engine(self.model, self.engine, self.precision, self.calibration)

    @property
    def form(self) -> InferenceForm:
        """The form in which the engine runs the model."""
        refine = self._refiner is not None
        return form_of(self.model, self.engine, self.precision, calibration=self.calibration, refine=refine)

    @property
    def device(self) -> torch.device:
        """The model's device."""
        return self.model.mean.device

    @torch.inference_mode()
    def generate(self, image: ImageLike | Picture) -> Proposals:
        """The best proposals of a photo: a path, a file's content, an open file, a PIL image or uint8 (h, w, 3) RGB.

        It may have been read before, by ``see``, for instance in another thread.

        Raises ``DataError`` for an unusable file, ``ValueError`` for what is no photo.
        """
        watch = Stopwatch(self.device)
        maps = self.look(image, watch, self._best)
        with watch("top-N"):
            windows = self._best(maps)
        logits = self.window_logits(maps, windows, watch)
        # A score of -inf stands for NaN. To leave it out waits for a GPU, so it is done after all that is queued there.
        known = windows.score.isfinite()
        if not known.all():
            windows, logits = windows.select(known), logits[known]
        rles = self.paste(maps, windows, logits, watch)
        with watch("suppress"):
            stay, scores = self._rank(windows, logits, rles)
        return self._proposals(maps, [rles[i] for i in stay], scores, watch)

    @torch.inference_mode()
    def at_points(self, image: ImageLike, points: Sequence[Sequence[float]], candidates: int = 16) -> Proposals:
        """One mask per point (x, y), in the points' order. A single point may stand for a list of one.

        Of the best ``candidates`` windows whose object may cover the point, it is the mask of the best-scoring
        window whose mask does cover it, or of the best-scoring window if none does. Raises ``ValueError`` for
        points that are not two finite numbers or lie outside the photo.
        """
        watch = Stopwatch(self.device)
        candidates = number(int, candidates, "candidates", Range(1, 100_000))
        picture = self.see(image)
        height, width = picture.size
        places = as_points(points, picture.size)

        def near(maps: ImageMaps) -> tuple[Grid, list[Tensor]]:
            grid = grid_of(maps, self.model.window)
            return grid, [windows_at_point(grid, x, y, candidates) for x, y in places]

        maps = self.look(picture, watch, lambda maps: Grid.windows(*near(maps)))
        grid, chosen = near(maps)
        windows = grid.windows(chosen)
        rles = self.segment(maps, windows, watch)
        best, first = [], 0
        for (x, y), index in zip(places, chosen, strict=True):
            group = range(first, first + len(index))
            pixel = min(int(y), height - 1), min(int(x), width - 1)
            best.append(next((i for i in group if covers(rles[i], pixel)), first))
            first += len(index)
        scores = windows.score.sigmoid().float().cpu().numpy()
        return self._proposals(maps, [rles[i] for i in best], scores[best], watch)

    @torch.inference_mode()
    def in_boxes(self, image: ImageLike, boxes: Sequence[Sequence[float]], *, clip: bool = False) -> Proposals:
        """One mask per box (x, y, width, height), in the boxes' order: that of the window that fits the box best.

        The mask may reach beyond the box; ``clip`` cuts it off at the box's border, rounded outwards to whole pixels.
        A single box may stand for a list of one. Raises ``ValueError`` for boxes that are not four finite numbers,
        have no area or lie outside the photo.
        """
        watch = Stopwatch(self.device)
        picture = self.see(image)
        places = as_boxes(boxes, picture.size)

        def fitting(maps: ImageMaps) -> Windows:
            grid = grid_of(maps, self.model.window)
            return grid.windows([window_in_box(grid, box, self.model.window)[None] for box in places])

        maps = self.look(picture, watch, fitting)
        windows = fitting(maps)
        rles = self.segment(maps, windows, watch)
        if clip:
            rles = [clip_to_box(rle, box) for rle, box in zip(rles, places, strict=True)]
        return self._proposals(maps, rles, windows.score.sigmoid().float().cpu().numpy(), watch)

    @torch.inference_mode()
    def grow(self, image: ImageLike, index: int = 0) -> tuple[npt.NDArray[np.uint8], list[npt.NDArray[np.float32]]]:
        """How the mask of the ``index``-th best window grows through the refinement modules.

        Returns the pixels (S, S, 3) that the model sees, and one picture a stage: of M1 .. M4 (s .. S/2 pixels)
        the channel that agrees best with the final mask, then the final probability (S, S). Raises ``ValueError``
        without refinement.
        """
        model = self._refiner
        if model is None:
            raise ValueError("grow needs a SharpMask with refine=True")
        maps = self.look(image, Stopwatch(self.device))
        count = sum(score.numel() for score in maps.score)
        index = number(int, index, "index", Range(0, count - 1))
        window = topk_windows(maps.score, index + 1).select(slice(index, index + 1))
        levels = zip(*maps.horizontals, strict=True)
        horizontals = [gather_windows(level, window, model.cells << j, step=1 << j) for j, level in enumerate(levels)]
        with self._casting:
            encodings = model.top_down(maps.form.codes(maps.codes, window), horizontals)
            final = model.head(encodings[-1]).sigmoid().float()
        stages = [best_channel(m.float(), final).cpu().numpy() for m in encodings[:-1]]
        return self._seen(maps, window), [*stages, final[0, 0].cpu().numpy()]

    def see(self, image: ImageLike) -> Picture:
        """The picture of a photo that ``look`` takes: the photo, or a smaller one if that is much more than needed."""
        if self.max_side is None:
            return see(image, self.exif, None)
        # Half the pixels are left for the resizing that follows, which therefore decides how the scales look.
        needed = math.ceil(self.max_side * max(self._settings.scales))
        return see(image, self.exif, max(2 * needed, self.max_side))

    def look(self, image: ImageLike | Picture, watch: Stopwatch, choose: Choice | None = None) -> ImageMaps:
        """The bottom-up pass over all scales, the smallest first.

        Horizontal maps are computed where the windows lie that ``choose`` gives, after each scale and for it; without
        ``choose``, everywhere. The trunk's maps, the largest by far, are dropped before the next scale.
        """
        picture = image if isinstance(image, Picture) else self.see(image)
        scales = self._scales(*picture.size)
        pixels = as_tensor(picture.pixels, self.device)
        maps = ImageMaps.of(picture, scales, self.device, self.form)
        for scale in sorted(range(len(scales)), key=scales.__getitem__):
            with watch("resize"):
                resized = self._placement.resize(pixels, scales[scale], picture.size)
            with watch("trunk and heads"), self._casting:
                dense = maps.form(resized)
            maps.codes[scale], maps.score[scale] = dense.codes, dense.score.float()
            maps.horizontals[scale] = self._horizontals(maps, scale, dense.taps, choose, watch)
            del dense
        recompute_weights(self.model)  # calls may have left some of inference mode
        return maps

    def _horizontals(
        self, maps: ImageMaps, scale: int, taps: list[Tap], choose: Choice | None, watch: Stopwatch
    ) -> list[Tensor]:
        """The horizontal maps of one scale, of its trunk maps."""
        model = self._refiner
        if model is None:
            return []
        if choose is None:
            with self._casting:
                return model.horizontals([*map(made, taps)])
        with watch("top-N"):
            windows = choose(maps)
        with watch("horizontal"), self._casting:
            return model.horizontals_at(taps, windows.row, windows.col, windows.scale == scale)

    def segment(self, maps: ImageMaps, windows: Windows, watch: Stopwatch) -> list[Rle]:
        """Masks of some windows as COCO RLE of the whole image."""
        return self.paste(maps, windows, self.window_logits(maps, windows, watch), watch)

    def window_logits(self, maps: ImageMaps, windows: Windows, watch: Stopwatch) -> Tensor:
        """Mask logits of some windows as ``paste`` takes them: refined (N, S, S), or the coarse ones."""
        model = self._refiner
        with watch("codes"), self._casting:
            code = maps.form.codes(maps.codes, windows)
        if model is None:
            with watch("coarse masks"), self._casting:
                return self._placement.enlarge(self.model.coarse(code))
        with watch("refine"), self._casting:
            return model.refine_codes(code, maps.horizontals, windows)

    def paste(self, maps: ImageMaps, windows: Windows, logits: Tensor, watch: Stopwatch) -> list[Rle]:
        """Mask logits of windows as COCO RLE of the whole image."""
        with watch("encode"):
            return self._placement.encode(logits, windows, maps.size, maps.scales, self._settings.threshold)

    @property
    def _settings(self) -> SearchConfig:
        assert self.search is not None  # __post_init__ has set it
        return self.search

    @property
    def _placement(self) -> Placement:
        return PLACEMENTS[self._settings.geometry](self.model.window)

    @property
    def _casting(self) -> AbstractContextManager[object]:
        """Autocast to the precision in which PyTorch computes."""
        dtype = None if self.engine == "openvino" else CAST[self.precision]
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)

    @property
    def _refiner(self) -> SharpMask | None:
        """The model, if it refines masks here."""
        return self.model if self.refine and isinstance(self.model, SharpMask) else None

    def _proposals(self, maps: ImageMaps, rles: list[Rle], scores: npt.NDArray[Any], watch: Stopwatch) -> Proposals:
        return Proposals(maps.picture.photo, rles, scores, watch.seconds, maps.picture.exif)

    def _best(self, maps: ImageMaps) -> Windows:
        """The windows to read for the best-scoring ``top_n``."""
        windows = topk_windows(maps.score, self.top_n)
        return self._placement.shift(windows, [score.shape[3] for score in maps.score])

    def _scales(self, height: int, width: int) -> list[float]:
        """The search's scales; for a photo beyond ``max_side`` they are relative to that size.

        Raises ``DataError`` for scales, which may come from anybody's checkpoint, that would take all memory or time.
        """
        limit = self.max_side or max(height, width)
        scales = [s * min(1.0, limit / max(height, width)) for s in self._settings.scales]
        pixels = [round(height * scale) * round(width * scale) for scale in scales]
        if max(pixels) > MOST_PIXELS or sum(pixels) > 4 * MOST_PIXELS:
            raise DataError(
                f"scales must give at most {MOST_PIXELS} pixels each and {4 * MOST_PIXELS} together, got {max(pixels)} "
                f"and {sum(pixels)} of a photo of {width}x{height}; lower them, or max_side"
            )
        return scales

    def _scaled(self, pixels: Tensor, scale: float, size: tuple[int, int]) -> Tensor:
        """The pixels at ``scale`` times the photo's size with half a window of grey around them, channels_last."""
        pad = self.model.window // 2
        padded = F.pad(self._placement.resize(pixels, scale, size), (pad,) * 4, value=GREY)
        return padded.contiguous(memory_format=torch.channels_last)

    def _seen(self, maps: ImageMaps, window: Windows) -> npt.NDArray[np.uint8]:
        """The pixels (S, S, 3) of one window."""
        scale, row, col = (int(v) * factor for v, factor in zip(window[2:], (1, STRIDE, STRIDE), strict=True))
        padded = self._scaled(as_tensor(maps.picture.pixels, self.device), maps.scales[scale], maps.size)[0]
        # The last windows of a grid reach up to a cell beyond the border.
        padded = F.pad(padded, (0, STRIDE, 0, STRIDE), value=GREY)
        pixels = padded[:, row : row + self.model.window, col : col + self.model.window].permute(1, 2, 0)
        return (pixels * 255).round().byte().cpu().numpy()

    def _rank(self, windows: Windows, logits: Tensor, rles: list[Rle]) -> tuple[list[int], npt.NDArray[np.float32]]:
        """The positions of the masks that stay, best first, and their scores."""
        search = self._settings
        prior = [(s / min(search.scales)) ** -search.scale_prior for s in search.scales]
        weighted = windows.score.sigmoid() * torch.tensor(prior, device=self.device)[windows.scale]
        if search.stability:
            weighted = weighted * stability(logits)
        score = weighted.float().cpu().numpy()
        # Empty masks are dropped. Their boxes show them; pycocotools' area fails on more than 255 masks with numpy 2.
        filled = np.flatnonzero(coco_mask.toBbox(rles)[:, 2]) if rles else np.zeros(0, dtype=np.int64)
        # The prior and the stability may have changed the order.
        filled = filled[np.argsort(-score[filled], kind="stable")]
        stay, scores = suppress(
            [rles[i] for i in filled],
            score[filled],
            mask_nms=search.mask_nms,
            box_nms=search.box_nms,
            soft=search.soft_nms,
        )
        return [int(filled[i]) for i in stay], scores


def stability(logits: Tensor) -> Tensor:
    """How sharp each mask (N, S, S) is, in [0, 1]; 0 for an empty one.

    This is the number of logits above 0 over the number above -2 (probabilities .5 and .12), as Segment Anything
    judges masks by how little they change with the threshold.
    """
    # In parts that stay in cache: PyTorch widens what it counts to eight bytes.
    parts = [torch.stack([(part > limit).flatten(1).sum(1) for limit in (0.0, -2.0)]) for part in logits.split(32)]
    sharp, blurred = torch.cat(parts, 1)
    return sharp / blurred.clamp(min=1)


def best_channel(encoding: Tensor, mask: Tensor) -> Tensor:
    """The channel (h, w) of an encoding (1, C, h, w) that correlates most with the mask (1, 1, H, W).

    A channel whose correlation is negative is given with its sign changed.
    """
    small = F.adaptive_avg_pool2d(mask, (encoding.shape[2], encoding.shape[3])).flatten()
    rows = torch.cat([encoding[0].flatten(1), small[None]])
    # A dead channel is constant and has no correlation.
    correlation = torch.corrcoef(rows)[-1, :-1].nan_to_num()
    best = int(correlation.abs().argmax())
    return encoding[0, best] * (1.0 if correlation[best] >= 0 else -1.0)


def covers(rle: Rle, pixel: tuple[int, int]) -> bool:
    """Whether the mask contains the pixel (row, col)."""
    return bool(coco_mask.decode(rle)[pixel])
