"""Full-image inference (section 3.3): dense maps once per scale, refinement for the best N windows only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from torch import Tensor

from sharpmask_kernels import Windows, gather_windows, topk_windows
from sharpmask_kernels.windows import STRIDE

from ..geometry import GREY
from ..ranges import Range, number
from .answers import answer, choice
from .choosing import best_windows
from .looking import PhotoSearch, stability
from .maps import ImageMaps, Stopwatch, as_tensor, window_boxes
from .pictures import ImageLike, Picture
from .prompts import CANDIDATES, Prompt, as_boxes, as_points, clip_to_box
from .proposals import Proposals, Rle, suppress
from .ranking import Looks, ranked, statistics


class Candidates(NamedTuple):
    """The masks of N windows of a photo, before they are ranked."""

    maps: ImageMaps
    windows: Windows
    logits: Tensor
    """(N, S, S)"""
    stability: Tensor
    """(N)"""
    rles: list[Rle]


@dataclass
class ProposalGenerator(PhotoSearch):
    """Masks for whole photos.

    ``top_n`` windows are refined and returned (fewer if non-maximum suppression or an empty mask drops some); more are
    refined, and the best of them returned, where the search has more ``candidates``. ``refine=False`` gives the coarse
    masks of the same windows. The other settings are those of every
    :class:`~sharpmask.search.looking.PhotoSearch`.

    Raises ``DataError`` for an engine or a precision that cannot be had here.
    """

    top_n: Annotated[int, Range(1, 100_000)] = 100

    @torch.inference_mode()
    def generate(self, image: ImageLike | Picture) -> Proposals:
        """The best proposals of a photo: a path, a file's content, an open file, a PIL image or uint8 (h, w, 3) RGB.

        It may have been read before, by ``see``, for instance in another thread.

        Raises ``DataError`` for an unusable file, ``ValueError`` for what is no photo.
        """
        watch = Stopwatch(self.device)
        found = self._candidates(image, watch)
        with watch("suppress"):
            stay, scores = self._rank(found)
        return self._proposals(found.maps, found.windows, found.stability, found.rles, stay, scores, watch)

    @torch.inference_mode()
    def judge(self, image: ImageLike | Picture) -> tuple[Tensor, list[Rle]]:
        """What a ranking is learned from: the masks of the best windows, and their statistics by ``RANKED_BY``."""
        found = self._candidates(image, Stopwatch(self.device))
        return self._statistics(found), found.rles

    def _candidates(self, image: ImageLike | Picture, watch: Stopwatch) -> Candidates:
        """The masks of the windows that are worth refining."""
        maps = self.look(image, watch, self._best)
        with watch("top-N"):
            windows = self._best(maps)
        logits = self.window_logits(maps, windows, watch)
        # A score of -inf stands for NaN. To leave it out waits for a GPU, so it is done after all that is queued there.
        known = windows.score.isfinite()
        if not known.all():
            windows, logits = windows.select(known), logits[known]
        rles = self.paste(maps, windows, logits, watch)
        return Candidates(maps, windows, logits, stability(logits), rles)

    def _statistics(self, found: Candidates) -> Tensor:
        """The statistics (N, len(RANKED_BY)) of candidates."""
        boxes = window_boxes(found.maps, found.windows, self.model.window)
        corner, side = boxes[:, :2], boxes[:, 2:]
        shown = np.minimum(corner + side, found.maps.size[::-1]) - corner.clip(0)
        outside = 1 - (shown.clip(0) / side).prod(1)
        scales = torch.tensor(found.maps.scales, device=self.device)
        octave = (scales / scales.min()).log2()[found.windows.scale]
        looks = Looks(found.windows.score, found.stability, octave, torch.from_numpy(outside).to(octave))
        return statistics(found.logits, looks, self._settings.threshold)

    @torch.inference_mode()
    def at_points(self, image: ImageLike, points: Sequence[Sequence[float]], candidates: int = CANDIDATES) -> Proposals:
        """One mask per point (x, y), in the points' order. A single point may stand for a list of one.

        It is the best mask that contains the point, of the best ``candidates`` windows of each scale whose object may
        cover it. :class:`~sharpmask.MaskPredictor` takes several points for one mask, and gives alternatives. Raises
        ``ValueError`` for points that are not two finite numbers or lie outside the photo.
        """
        candidates = number(int, candidates, "candidates", Range(1, 100_000))
        picture = self.see(image)
        prompts = [Prompt(points=[point]) for point in as_points(points, picture.size)]
        return self._answers(picture, prompts, candidates)

    @torch.inference_mode()
    def in_boxes(self, image: ImageLike, boxes: Sequence[Sequence[float]], *, clip: bool = False) -> Proposals:
        """One mask per box (x, y, width, height), in the boxes' order: the best of the windows that fit the box.

        The mask may reach beyond the box; ``clip`` cuts it off at the box's border, rounded outwards to whole pixels.
        A single box may stand for a list of one. Raises ``ValueError`` for boxes that are not four finite numbers,
        have no area or lie outside the photo.
        """
        picture = self.see(image)
        places = as_boxes(boxes, picture.size)
        found = self._answers(picture, [Prompt(box=box) for box in places], CANDIDATES)
        if not clip:
            return found
        return replace(found, rles=[clip_to_box(rle, box) for rle, box in zip(found.rles, places, strict=True)])

    def _answers(self, picture: Picture, prompts: list[Prompt], candidates: int) -> Proposals:
        """A mask for each prompt."""
        watch = Stopwatch(self.device)
        maps = self.look(picture, watch, choice(self, prompts, candidates))
        found = answer(self, maps, prompts, candidates, watch)
        best = [order[0] for order in found.chosen]
        return self._proposals(maps, found.windows, found.stability, found.rles, best, found.scores[best], watch)

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

    def _proposals(
        self,
        maps: ImageMaps,
        windows: Windows,
        sharp: Tensor,
        rles: list[Rle],
        stay: list[int],
        scores: npt.NDArray[np.float32],
        watch: Stopwatch,
    ) -> Proposals:
        """The proposals at the positions ``stay``, whose ``scores`` are given."""
        return Proposals(
            maps.picture.photo,
            [rles[i] for i in stay],
            scores,
            watch.seconds,
            maps.picture.exif,
            sharp.float().cpu().numpy()[stay],
            window_boxes(maps, windows, self.model.window)[stay],
        )

    def _best(self, maps: ImageMaps) -> Windows:
        """The windows to read for those that are worth refining."""
        search = self._settings
        count = max(self.top_n, search.candidates)
        windows = best_windows(maps.score, count, priors=self._priors, spread=search.spread)
        return self._placement.shift(windows, [score.shape[3] for score in maps.score])

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

    def _scores(self, found: Candidates) -> npt.NDArray[np.float32]:
        """The scores of candidates before suppression."""
        search = self._settings
        if search.ranking:
            return ranked(self._statistics(found), search.ranking).cpu().numpy()
        weighted = found.windows.score.sigmoid() * torch.tensor(self._priors, device=self.device)[found.windows.scale]
        return (weighted * found.stability**search.stability).float().cpu().numpy()

    @property
    def _priors(self) -> list[float]:
        """What the scores of each scale are multiplied by."""
        search = self._settings
        return [(scale / min(search.scales)) ** -search.scale_prior for scale in search.scales]

    def _rank(self, found: Candidates) -> tuple[list[int], npt.NDArray[np.float32]]:
        """The positions of the masks that stay, best first, and their scores."""
        search, rles, score = self._settings, found.rles, self._scores(found)
        # Empty masks are dropped. Their boxes show them; pycocotools' area fails on more than 255 masks with numpy 2.
        filled = np.flatnonzero(coco_mask.toBbox(rles)[:, 2]) if rles else np.zeros(0, dtype=np.int64)
        # They need not be in the order of the windows' scores.
        filled = filled[np.argsort(-score[filled], kind="stable")]
        stay, scores = suppress(
            [rles[i] for i in filled],
            score[filled],
            mask_nms=search.mask_nms,
            box_nms=search.box_nms,
            soft=search.soft_nms,
        )
        return [int(filled[i]) for i in stay[: self.top_n]], scores[: self.top_n]


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
