"""What ``sharpmask eval`` measures of results: recall, its intervals, groups of objects, differences, misses."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..errors import counted
from ..evaluation import (
    By,
    Figures,
    Kind,
    Matches,
    Recall,
    break_down,
    breakdown_table,
    difference,
    difference_table,
    figures,
    match_objects,
    plot_recall,
    recall_of,
    recall_table,
    write_gallery,
)
from ..evaluation.bootstrap import FEWEST_PHOTOS
from ..files import write_text
from .output import ERR, say, show

Results = Sequence[Mapping[str, Any]]
GALLERY = "gallery.html"


@dataclass(frozen=True)
class Measured:
    """What was measured of the masks or of the boxes of some results."""

    results: Results
    matches: Matches
    missing: int
    """Annotated photos without results."""
    recall: Recall
    figures: Figures
    """The recall of all objects, with intervals."""
    groups: dict[str, dict[str, Figures]]
    """That of groups of objects, by what they are grouped by and by name."""

    def to_json(self) -> dict[str, Any]:
        """A dict that ``json.dumps`` accepts."""
        own = self.figures.to_json()
        told = {key: own[key] for key in ("objects", "photos", "ar_interval", "auc_interval")}
        groups = {by: {name: found.to_json() for name, found in figures.items()} for by, figures in self.groups.items()}
        return self.recall.to_json() | told | ({"by": groups} if groups else {})


@dataclass(frozen=True)
class Report:
    """All that is measured, by name."""

    masks: dict[str, Measured]
    boxes: dict[str, Measured]
    differences: dict[str, Figures]
    """Of masks, and of boxes, against those of the other results."""

    def show(self) -> None:
        """Print the tables. Those of groups are of the first results' masks, if there are masks."""
        for rows in filter(None, (self.masks, self.boxes)):
            recalls = {name: row.recall for name, row in rows.items()}
            show(recall_table(recalls, paper=True, figures={name: row.figures for name, row in rows.items()}))
        name, row = self._main
        for by, groups in row.groups.items():
            show(breakdown_table(f"{by}: {name}", groups, row.recall.most))
        if self.differences:
            show(difference_table(self.differences))

    def write(self, patches: dict[str, float], out: Path) -> None:
        """Write what was measured, and a plot of it, to the folder ``out``."""
        rows = self.masks | self.boxes
        summary: dict[str, Any] = {"patches": patches} if patches else {}
        summary |= {name: row.to_json() for name, row in rows.items()}
        if self.differences:
            summary["differences"] = {name: found.to_json() for name, found in self.differences.items()}
        write_text(out / "recall.json", json.dumps(summary, indent=1))
        try:
            plot_recall({name: row.recall for name, row in rows.items()}, out / "recall.png")
        except ImportError as error:
            say(f"no plot: {error}", ERR)

    def write_gallery(
        self, truth: dict[str, Any], load: Callable[[int], NDArray[np.uint8]], count: int, out: Path
    ) -> None:
        """Write the page of the ``count`` objects that the first results miss by most."""
        name, row = self._main
        title = f"Objects missed by most ({name})"
        write_gallery(out / GALLERY, row.matches, truth, row.results, load, count=count, title=title)

    @property
    def _main(self) -> tuple[str, Measured]:
        return next(iter((self.masks or self.boxes).items()))


def compared(row: Measured, other: Measured, resamples: int) -> Figures:
    """What the results have more than the others; without intervals where one of the two lacks photos."""
    return difference(row.matches, other.matches, resamples=0 if row.missing or other.missing else resamples)


def measure(
    rows: Mapping[str, Results], truth: dict[str, Any], *, by: Sequence[str], resamples: int, against: str | None
) -> Report:
    """Measure results by name. Those that have boxes alone are measured as boxes alone.

    against: the name of those that the others are compared with.
    """
    masks: dict[str, Measured] = {}
    boxes: dict[str, Measured] = {}
    annotated = {entry["image_id"] for entry in truth["annotations"] if not entry["iscrowd"]}

    def measured(results: Results, kind: Kind) -> Measured:
        matches = match_objects(truth, results, kind=kind)
        missing = len(annotated - {entry["image_id"] for entry in results})
        draws = resamples if len(annotated) - missing >= FEWEST_PHOTOS else 0
        groups = {name: break_down(matches, truth, cast(By, name), resamples=draws) for name in by}
        return Measured(results, matches, missing, recall_of(matches), figures(matches, resamples=draws)[0], groups)

    for name, results in rows.items():
        missing = annotated - {entry["image_id"] for entry in results}
        if missing:
            photos = f"{len(missing)} of {counted(len(annotated), 'photo')}"
            say(f"{name}: no results for {photos}: their objects count as missed", ERR)
        with_mask = [entry for entry in results if "segmentation" in entry]
        if len(with_mask) < len(results):
            told = f"{len(results) - len(with_mask)} of {counted(len(results), 'result has', 'results have')} no mask"
            say(f"{name}: {told}, so masks are measured of the others" if with_mask else f"{name}: {told}", ERR)
        if with_mask or not results:
            masks[f"{name}, masks"] = measured(with_mask, "segm")
        boxes[f"{name}, boxes"] = measured(results, "bbox")
    differences = {
        f"{name} - {other}": compared(row, group[other], resamples)
        for group, other in ((masks, f"{against}, masks"), (boxes, f"{against}, boxes"))
        for name, row in group.items()
        if other in group and name != other
    }
    return Report(masks, boxes, differences)
