"""What every search of a photo does: the bottom-up pass over all scales, and the masks of chosen windows."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from sharpmask_kernels import Windows

from ..data.orientation import Exif
from ..engines import Engine, Precision
from ..errors import DataError
from ..models import DeepMask, SearchConfig, SharpMask
from ..models.inference import InferenceForm, Tap, made, recompute_weights
from ..ranges import Range, Settings, shown
from .engines import CAST, check_engine, form_of
from .maps import Choice, ImageMaps, Stopwatch, as_tensor
from .pictures import ImageLike, Picture, see
from .placement import PLACEMENTS, Placement
from .proposals import Rle

MOST_PIXELS = 1 << 25
"""Most pixels of a photo at one scale."""


@dataclass(kw_only=True)
class PhotoSearch(Settings):
    """A model that looks at whole photos.

    ``refine=False`` gives coarse masks. ``search`` defaults to the model's own settings. A photo whose longer side
    exceeds ``max_side`` pixels is searched as if it had that size (None: no limit), which bounds time and memory; masks
    always have the photo's own resolution. A file or a PIL image is ``turned`` by its EXIF orientation, as viewers show
    it, unless ``exif`` is ``stored``; all positions are in the pixels that it names. ``engine`` computes the maps that
    windows share, in ``precision``, whose int8 takes its ranges from the photos in the folder ``calibration``
    (docs/engines.md).

    Raises ``DataError`` for an engine or a precision that cannot be had here.
    """

    model: DeepMask = field(kw_only=False)
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


def stability(logits: Tensor) -> Tensor:
    """How sharp each mask (N, S, S) is, in [0, 1]; 0 for an empty one.

    This is the number of logits above 0 over the number above -2 (probabilities .5 and .12), as Segment Anything
    judges masks by how little they change with the threshold.
    """
    # In parts that stay in cache: PyTorch widens what it counts, by default to eight bytes.
    parts = [
        torch.stack([(part > limit).flatten(1).sum(1, dtype=torch.int32) for limit in (0.0, -2.0)])
        for part in logits.split(8)
    ]
    sharp, blurred = torch.cat(parts, 1)
    return sharp / blurred.clamp(min=1)
