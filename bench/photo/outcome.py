"""What a contender finds on a photo, and whether it is what plain PyTorch finds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco

from ..measure import WrongResult


class Outcome(NamedTuple):
    """The best N windows with their logits, and the M proposals made of them."""

    windows: npt.NDArray[np.int64]
    """(N, 3): scale, row, column."""
    window_scores: npt.NDArray[np.float32]
    """(N): score logits."""
    logits: npt.NDArray[np.float32]
    """(N, S, S)"""
    rles: list[dict[str, Any]]
    """(M)"""
    scores: npt.NDArray[np.float32]
    """(M)"""


class Tolerance(NamedTuple):
    """How much results may differ."""

    windows: float
    """Windows that both must have, as a share of all."""
    score: float
    """By how much the score logit of a window that only one of them has may differ from the last window's."""
    logits: float
    """The 2-norm of the difference, as a share of that of the expected logits; of windows that both have."""
    masks: float
    """The mean, over the expected masks, of the best IoU with a mask that was found."""


ROUNDED = Tolerance(windows=0.95, score=2e-3, logits=1e-3, masks=0.999)
"""For everyone who computes in fp32. The windows at the end of the ranking may be others where scores are equal."""

REDUCED = Tolerance(windows=0.6, score=float("inf"), logits=0.3, masks=0.8)
"""For int8 and bf16: whether it is the same search at all. docs/engines.md says what they cost in recall."""


def save(outcome: Outcome, path: Path) -> None:
    """Writes an outcome to a file with the suffix ``.npz``."""
    rles = [{"size": rle["size"], "counts": rle["counts"].decode("ascii")} for rle in outcome.rles]
    np.savez(path, *outcome[:3], outcome.scores, np.frombuffer(json.dumps(rles).encode(), dtype=np.uint8))


def load(path: Path) -> Outcome:
    with np.load(path) as file:
        windows, window_scores, logits, scores, text = file.values()
    rles = [{"size": rle["size"], "counts": rle["counts"].encode("ascii")} for rle in json.loads(text.tobytes())]
    return Outcome(windows, window_scores, logits, rles, scores)


def check(name: str, found: Outcome, expected: Outcome, tolerance: Tolerance) -> None:
    """Raise :class:`WrongResult` if ``found`` is not ``expected`` within the tolerance."""
    for problem in problems(found, expected, tolerance):
        raise WrongResult(f"{name} differs from plain PyTorch, so it is not timed: {problem}")


def problems(found: Outcome, expected: Outcome, tolerance: Tolerance) -> Iterator[str]:
    """What exceeds the tolerance, in words."""
    places = [{tuple(window): i for i, window in enumerate(o.windows.tolist())} for o in (found, expected)]
    both = [(places[0][place], i) for place, i in places[1].items() if place in places[0]]
    share = len(both) / max(len(found.windows), len(expected.windows), 1)
    if share < tolerance.windows:
        yield f"{share:.1%} of the windows are the same, required are {tolerance.windows:.1%}"
    alone = np.ones(len(found.windows), dtype=bool)
    alone[[i for i, _ in both]] = False
    last = expected.window_scores.min(initial=np.inf)
    off = float(np.abs(found.window_scores[alone] - last).max(initial=0))
    if not off <= tolerance.score:
        yield f"a window that it alone has scores {off:.1e} from the last one, allowed are {tolerance.score:.0e}"
    if not both:
        return
    ours, theirs = (o.logits[[pair[k] for pair in both]].astype(np.float64) for k, o in enumerate((found, expected)))
    error = float(np.linalg.norm(ours - theirs) / max(float(np.linalg.norm(theirs)), 1e-30))
    if not error <= tolerance.logits:
        yield f"logits off by {error:.1e}, allowed {tolerance.logits:.0e}"
    agreement = mean_best_iou(found.rles, expected.rles)
    if not agreement >= tolerance.masks:
        yield f"masks have a mean best IoU of {agreement:.4f}, required is {tolerance.masks}"


def mean_best_iou(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> float:
    """The mean, over the expected masks, of the best IoU with a mask that was found."""
    if not found or not expected:
        return float(len(found) == len(expected))
    best = [float(np.max(coco.iou(found, [rle], [0]))) for rle in expected]
    return float(np.mean(best))
