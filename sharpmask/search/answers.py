"""Masks for prompts: the windows that may show the object are refined in one batch, and their masks ranked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from sharpmask_kernels import Windows

from .looking import PhotoSearch, stability
from .maps import Choice, Grid, ImageMaps, Stopwatch, grid_of
from .prompts import Prompt, agreement, candidates
from .proposals import Rle, areas

MOST: Final = 3
"""Masks for one prompt."""
LARGER: Final = 1.5
"""How much larger one mask for a prompt must be than the next: otherwise both show the same."""

CLICKED: Final = 0.5
"""The less of a mask is its area to this power, the likelier is a click on it (:func:`likely_size`)."""


class Answers(NamedTuple):
    """The masks of all windows that were refined, and those chosen for each prompt."""

    windows: Windows
    logits: Tensor
    """(N, S, S)"""
    stability: Tensor
    """(N)"""
    rles: list[Rle]
    scores: npt.NDArray[np.float32]
    """How well each mask answers its prompt, (N) in [0, 1]."""
    chosen: list[list[int]]
    """For each prompt the positions of its masks, best first: at least one."""


def choice(search: PhotoSearch, prompts: Sequence[Prompt], count: int) -> Choice:
    """The windows that ``answer`` refines."""

    def choose(maps: ImageMaps) -> Windows:
        grid = grid_of(maps, search.model.window)
        return grid.windows([candidates(grid, prompt, search.model.window, count) for prompt in prompts])

    return choose


def answer(
    search: PhotoSearch,
    maps: ImageMaps,
    prompts: Sequence[Prompt],
    count: int,
    watch: Stopwatch,
    grid: Grid | None = None,
) -> Answers:
    """Masks for each prompt, of ``count`` windows a scale; ``grid``: that of ``maps``, if it is known."""
    grid = grid or grid_of(maps, search.model.window)
    groups = [candidates(grid, prompt, search.model.window, count) for prompt in prompts]
    windows = grid.windows(groups)
    logits = search.window_logits(maps, windows, watch)
    rles = search.paste(maps, windows, logits, watch)
    with watch("rank"):
        sharp = stability(logits).float()
        likely = windows.score.sigmoid().float().cpu().numpy()
        scores = sharp.cpu().numpy().copy()
        chosen, first = [], 0
        for prompt, group in zip(prompts, groups, strict=True):
            part = slice(first, first + len(group))
            if prompt.box is None:  # Around a box there is an object in any case.
                scores[part] *= likely[part]
            plain = scores[part].copy()
            scores[part] *= agreement(prompt, rles[part])
            area = areas(rles[part])
            if prompt.box is None and prompt.mask is None:
                scores[part] *= likely_size(area, scores[part])
            order = np.lexsort((-plain, -scores[part]))
            chosen.append([first + int(i) for i in differing(area, scores[part], order)])
            first += len(group)
    return Answers(windows, logits, sharp, rles, scores, chosen)


def likely_size(area: npt.NDArray[np.float64], scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """How likely objects of these areas are meant by a click, against that of the mask that is best then, (N).

    Who clicks a large object could have clicked many other places of it, who clicks a small one could not. The
    likelihood of a place is the area to the power -1 if clicks are spread evenly; they prefer the middle.
    """
    size = np.maximum(area, 1) ** -CLICKED
    return np.asarray(size / size[(scores * size).argmax()])


def differing(
    area: npt.NDArray[np.float64], scores: npt.NDArray[np.float32], order: npt.NDArray[np.int64]
) -> list[int]:
    """The first mask in ``order``, and those after it whose score is above 0 and whose size none before them has."""
    chosen = [int(order[0])]
    for i in order[1:]:
        sizes = area[chosen]
        if scores[i] > 0 and (np.maximum(sizes, area[i]) >= LARGER * np.minimum(sizes, area[i])).all():
            chosen.append(int(i))
    return chosen[:MOST]
