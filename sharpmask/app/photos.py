"""The photos that are open in the page, and the masks that were found on them."""

from __future__ import annotations

import io
import secrets
import shutil
import threading
from collections import OrderedDict
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from ..data.images import reduced
from ..errors import DataError, one_line
from ..ranges import shown
from ..search import MaskPredictor, ProposalGenerator, Proposals
from ..search.looking import PhotoSearch
from ..search.proposals import Rle, areas

VIEW_SIDE: Final = 1024
"""Longer side of the photo as the page shows it."""
MOST_OPEN: Final = 4
"""Photos that stay open, because each takes memory: one for each of some tabs."""


class OpenPhoto:
    """A photo, all masks found on it so far, and the predictor that answers clicks on it.

    A mask is known by its position: first come the proposals, best first, and then what clicks have found.
    """

    def __init__(self, path: Path, name: str, generator: ProposalGenerator) -> None:
        self.path, self.name = path, name
        self.predictor = predictor_like(generator)
        picture = generator.see(path)
        self.found = generator.generate(picture)
        self.predictor.set_image(picture)
        self.rles, self.scores = list(self.found.rles), self.found.scores.tolist()
        small = reduced(picture.pixels, VIEW_SIDE)
        self.view_size = small.shape[:2]
        self.view = io.BytesIO()
        Image.fromarray(small).save(self.view, "JPEG", quality=90)

    def described(self, first: int = 0) -> list[dict[str, Any]]:
        """The masks from the ``first`` on as the page takes them, as COCO RLE."""
        rles = self.rles[first:]
        return [
            {"id": id, "score": score, "area": int(area), "rle": _as_json(rle)}
            for id, (rle, score, area) in enumerate(zip(rles, self.scores[first:], areas(rles), strict=True), first)
        ]

    def answer(self, points: Any, labels: Any, box: Any) -> list[dict[str, Any]]:
        """Up to three masks for clicks, a box (x0, y0, x1, y1) or both, in pixels of the photo.

        Raises ``ValueError`` that names what is unusable.
        """
        masks, scores, _ = self.predictor.predict(points or None, labels or None, box=box)
        known = len(self.rles)
        for mask, score in zip(masks, scores.tolist(), strict=True):
            if mask.any():
                self.rles.append(dict(coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))))
                self.scores.append(score)
        return self.described(known)

    def chosen(self, ids: Any) -> Proposals:
        """The masks with some ids, in their order. Raises ``DataError`` for what are none."""
        known = range(len(self.rles))
        if not isinstance(ids, list) or not ids or any(type(i) is not int or i not in known for i in ids):
            raise DataError(f"masks must be a list of numbers from 0 to {len(known) - 1}, got {shown(ids)}")
        scores = np.array([self.scores[i] for i in ids], dtype=np.float32)
        return Proposals(self.found.photo, [self.rles[i] for i in ids], scores, exif=self.found.exif)


class OpenPhotos:
    """The photos that are open, by keys that cannot be guessed; the oldest is closed where there are too many.

    ``folder`` holds their files. Photos are searched one at a time.
    """

    def __init__(self, generator: ProposalGenerator, folder: Path) -> None:
        self._generator, self._folder = generator, folder
        self._open: OrderedDict[str, OpenPhoto] = OrderedDict()
        self.lock = threading.Lock()
        """To be held while masks are computed."""

    def new_file(self) -> Path:
        """A file, in a folder of its own, for a photo to open."""
        folder = self._folder / secrets.token_urlsafe(16)
        folder.mkdir()
        return folder / "photo"

    def open(self, path: Path, name: str) -> tuple[str, OpenPhoto]:
        """Search a photo and keep it open. Raises ``DataError`` for one that cannot be used, whose file then goes."""
        try:
            with self.lock:
                photo = OpenPhoto(path, name, self._generator)
        except BaseException as error:
            shutil.rmtree(path.parent, ignore_errors=True)
            if isinstance(error, DataError):
                # Nobody has asked for the file's own path.
                raise DataError(str(error).replace(str(path), one_line(name))) from None
            raise
        key = path.parent.name
        self._open[key] = photo
        while len(self._open) > MOST_OPEN:
            _, old = self._open.popitem(last=False)
            shutil.rmtree(old.path.parent, ignore_errors=True)
        return key, photo

    def get(self, key: str) -> OpenPhoto:
        """Raises ``KeyError`` for a photo that is not open."""
        photo = self._open[key]
        self._open.move_to_end(key)
        return photo


def predictor_like(generator: ProposalGenerator) -> MaskPredictor:
    """A predictor with the settings of a generator."""
    settings = {f.name: getattr(generator, f.name) for f in fields(PhotoSearch) if f.init and f.name != "model"}
    return MaskPredictor(generator.model, **settings)


def _as_json(rle: Rle) -> dict[str, Any]:
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}
