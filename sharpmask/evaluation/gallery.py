"""A page of the objects that proposals miss by most, with the nearest proposal beside each."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from ..data.annotations import rectangle
from ..errors import DataError
from ..files import write_text
from ..visualize import overlay
from .breakdown import group_names
from .matching import FIRST, SIZES, Entry, Matches, as_rle
from .results import GroundTruth, instances

SIDE = 320
"""Longest side of a picture in pixels."""
MOST_ENLARGED = 6
"""Small objects are shown so many times as large, at most."""
MARGIN = 0.3
"""What is shown around the object and the proposal, as a share of their longer side; at least `LEAST_MARGIN` pixels."""
LEAST_MARGIN = 24
FOUND = 0.5
"""An object whose nearest proposal has at least this IoU is found at some threshold of average recall."""
PER_PHOTO = 2
"""Objects of one photo, at most, unless the others of the page would be found."""
ORDER = ("large", "medium", "small")
"""The order of the sections."""
STYLE = """
:root { color-scheme: light dark; font: 15px/1.45 system-ui, sans-serif; }
body { max-width: 1400px; margin: 2rem auto; padding: 0 1rem; }
section { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); gap: 1.5rem; }
figure { margin: 0; padding: .75rem; border: 1px solid #8886; border-radius: 8px; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .5rem; align-items: start; }
.pair img { max-width: 100%; height: auto; justify-self: center; border-radius: 4px; }
.pair p { margin: 0; opacity: .7; overflow-wrap: anywhere; }
figcaption { margin-top: .5rem; overflow-wrap: anywhere; }
"""
STYLE_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
HEAD = f"""<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'sha256-{STYLE_HASH}'">
<style>{STYLE}</style>
"""
"""The policy lets the page load nothing and run no script: names in it are other people's."""
EXPLANATION = (
    f"<p>Left: the annotated object. Right: of the first {FIRST} proposals of its photo, the one of the largest IoU "
    "with it (intersection over union). Rank 1 is the proposal with the best score.</p>\n"
)


class Missed(NamedTuple):
    """An object of the page: its place in `Matches`, and its size."""

    at: int
    size: str


def write_gallery(
    path: Path | str,
    matches: Matches,
    ground_truth: GroundTruth,
    results: Sequence[Entry],
    load: Callable[[Any], NDArray[np.uint8]],
    *,
    count: int = 20,
    title: str = "Objects missed by most",
) -> int:
    """Write an HTML page of the `count` objects whose nearest proposal, of the first 100, has the lowest IoU with them.

    Large, medium and small objects take turns, because small ones alone would fill the page. Of one photo come two
    objects at most, unless too few others are missed (IoU below .5). The page is one file that loads nothing, with
    pictures of at most 320 pixels inside it: whoever has it sees parts of the photos. Photos are read one at a time.

    matches: of `results` with `ground_truth`. load: the photo of an image id, uint8 (h, w, 3), in the pixels that are
    annotated; where it raises DataError, its message stands in the place of the pictures. Returns the number of
    objects on the page. Raises OSError where `path` cannot be written.
    """
    chosen = missed(matches, count)
    figure = _Figures(matches, ground_truth, results, load)
    write_text(Path(path), _page(chosen, figure, title))
    return len(chosen)


def missed(matches: Matches, count: int) -> list[Missed]:
    """The objects that are missed by most, large ones first, of each size the lowest IoU first, then the largest."""
    ious, photos = matches.nearest_iou[0], matches.photos.tolist()
    by_iou = np.lexsort((-matches.areas, ious)).tolist()
    sizes = [_size(matches, at) for at in range(len(by_iou))]
    shown, chosen = Counter[int](), list[int]()
    for found in (False, True):
        pool = [at for at in by_iou if (ious[at] >= FOUND) == found]
        queues = [[at for at in pool if sizes[at] == size] for size in ORDER]
        chosen += _in_turns(queues, photos, shown, count - len(chosen))
    places = {at: place for place, at in enumerate(by_iou)}
    chosen.sort(key=lambda at: (ORDER.index(sizes[at]), places[at]))
    return [Missed(at, sizes[at]) for at in chosen]


def _in_turns(queues: Sequence[list[int]], photos: Sequence[int], shown: Counter[int], count: int) -> list[int]:
    """At most `count` objects, each queue's first ones in turn. Takes them out and counts them by photo in `shown`.

    `PER_PHOTO` of a photo come first, and another one of each only where that does not suffice.
    """
    chosen: list[int] = []
    most = PER_PHOTO
    while len(chosen) < count and any(queues):
        before = len(chosen)
        for queue in queues:
            at = next((at for at in queue if shown[photos[at]] < most), None)
            if at is not None and len(chosen) < count:
                queue.remove(at)
                shown[photos[at]] += 1
                chosen.append(at)
        most += len(chosen) == before
    return chosen


def _size(matches: Matches, at: int) -> str:
    """The size of an object. One at the border of two sizes has both, and counts as the larger here."""
    return next(size for size in ORDER if matches.counted[SIZES.index(size), at])


def _page(chosen: Sequence[Missed], figure: Callable[[Missed], str], title: str) -> Iterator[str]:
    """The pieces of the page, one figure after another."""
    name = html.escape(title)
    yield f"{HEAD}<title>{name}</title>\n<h1>{name}</h1>\n{EXPLANATION}"
    for size, group in groupby(chosen, lambda each: each.size):
        yield f"<h2>{size.capitalize()} objects</h2>\n<section>\n"
        yield from map(figure, group)
        yield "</section>\n"
    yield "</html>\n"


class _Figures:
    """Makes the figure of one object at a time."""

    def __init__(
        self,
        matches: Matches,
        ground_truth: GroundTruth,
        results: Sequence[Entry],
        load: Callable[[Any], NDArray[np.uint8]],
    ) -> None:
        self.matches, self.results, self.load = matches, results, load
        self.dataset = instances(ground_truth)
        self.names = group_names(ground_truth, "category")

    def __call__(self, missed: Missed) -> str:
        place, image = self.matches.objects[missed.at], self.dataset["images"][self.matches.photos[missed.at]]
        annotation, found = self.dataset["annotations"][place], self.matches.nearest_result[0, missed.at]
        entry = None if found < 0 else self.results[found]
        lines = [
            f"{self.names[place]}, {missed.size}: {self.matches.areas[missed.at]:.0f} pixels",
            f"photo {image.get('file_name', image['id'])}, annotation {annotation.get('id', place)}",
            *self._nearest(missed.at),
        ]
        return (
            f'<figure><div class="pair">{self._pair(annotation, entry, image)}</div>\n'
            f"<figcaption>{'<br>'.join(map(html.escape, lines))}</figcaption></figure>\n"
        )

    def _nearest(self, at: int) -> Iterator[str]:
        """What is said of the proposals: the nearest of the first ones, and of all if that is another one."""
        if self.matches.nearest_result[0, at] >= 0:
            yield f"of the first {FIRST}: {self._told(0, at)}"
        else:
            yield f"of the first {FIRST}: none touches it"
        if self.matches.nearest_result[1, at] != self.matches.nearest_result[0, at]:
            yield f"of all: {self._told(1, at)}"

    def _told(self, row: int, at: int) -> str:
        iou, rank = self.matches.nearest_iou[row, at], self.matches.nearest_rank[row, at] + 1
        return f"IoU {iou:.2f}, rank {rank}"

    def _pair(self, annotation: Entry, entry: Entry | None, image: Entry) -> str:
        """The object, and the proposal or why there is none."""
        mask = "segmentation" if annotation.get("segmentation") else "bbox"
        wanted = _outline(annotation, mask, image)
        shape = "bbox" if self.matches.kind == "bbox" and entry is not None and "bbox" in entry else "segmentation"
        given = None if entry is None else _outline(entry, shape, image)
        outlines = [outline for outline in (wanted, given) if outline is not None]
        if not outlines:
            return "<p>The object is outside the photo.</p>"
        try:
            pixels = self.load(image["id"])
        except DataError as error:
            return f"<p>{html.escape(str(error))}</p>"
        frame = _frame(outlines, image)
        left = _picture(pixels, wanted, frame, "the annotated object") if wanted else "<p>It is outside the photo.</p>"
        right = _picture(pixels, given, frame, "the nearest proposal") if given else "<p>No proposal touches it.</p>"
        return left + right


def _outline(entry: Entry, key: str, image: Entry) -> Any:
    """The mask or the box of an annotation or a result as compressed RLE; None for a box outside the image."""
    if key == "segmentation":
        return as_rle(entry[key], image)
    # Within the image before it is drawn: pycocotools takes any number for a coordinate.
    x, y, w, h = entry[key]
    height, width = image["height"], image["width"]
    box = rectangle(x, y, x + w, y + h, height, width)
    return box and coco_mask.frPyObjects(np.array([box.box], float), height, width)[0]


def _frame(outlines: Sequence[Any], image: Entry) -> tuple[slice, slice]:
    """The rows and columns of the image that show the outlines, with a margin."""
    boxes = coco_mask.toBbox(list(outlines))
    low, high = boxes[:, :2].min(axis=0), (boxes[:, :2] + boxes[:, 2:]).max(axis=0)
    margin = max(LEAST_MARGIN, MARGIN * float((high - low).max()))
    left, top = (max(0, math.floor(edge - margin)) for edge in low)
    right, bottom = (math.ceil(edge + margin) for edge in high)
    return slice(top, min(bottom, image["height"])), slice(left, min(right, image["width"]))


def _picture(pixels: NDArray[np.uint8], outline: Any, frame: tuple[slice, slice], text: str) -> str:
    """An `img` element: the part of the photo with the outline over it, as a JPEG inside the page."""
    part, mask = pixels[frame], coco_mask.decode(outline)[frame] * np.uint8(255)
    factor = min(SIDE / max(mask.shape), MOST_ENLARGED)
    size = tuple(max(1, round(side * factor)) for side in mask.shape[::-1])
    resized = np.asarray(Image.fromarray(part).resize(size, Image.Resampling.BICUBIC))
    drawn = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.BILINEAR)) > 127
    file = io.BytesIO()
    Image.fromarray(overlay(resized, [drawn], fill=0.3)).save(file, "jpeg", quality=85)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img width="{size[0]}" height="{size[1]}" alt="{text}" src="data:image/jpeg;base64,{data}">'
