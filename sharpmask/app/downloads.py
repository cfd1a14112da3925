"""The files that can be downloaded from the page."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ..files import write_text
from ..formats.outputs import cutouts
from ..search import Proposals
from ..visualize import save_picture


def write_coco(found: Proposals, name: str, folder: Path) -> Path:
    """COCO results, as ``propose`` writes them."""
    entries = [entry | {"file_name": name, "exif": found.exif} for entry in found.to_coco(1)]
    write_text(folder / "masks.json", json.dumps(entries))
    return folder / "masks.json"


def write_png(found: Proposals, name: str, folder: Path) -> Path:
    """The masks as pictures."""
    found.to_png(folder / "png")
    return _zipped(folder / "png")


def write_cutouts(found: Proposals, name: str, folder: Path) -> Path:
    """The objects cut out of the photo, one at a time, because the photo may be large."""
    for number, (mask, box) in enumerate(zip(found.iter_masks(), found.boxes, strict=True), 1):
        (picture,) = cutouts(found.image, [mask], [box])
        save_picture(picture, folder / "cutouts" / f"cutout_{number:05d}.png")
    return _zipped(folder / "cutouts")


KINDS: Final[dict[str, Callable[[Proposals, str, Path], Path]]] = {
    "coco": write_coco,
    "png": write_png,
    "cutouts": write_cutouts,
}
"""What writes each kind of file: the masks of the photo with a name, into a folder. Returns the file."""


def _zipped(folder: Path) -> Path:
    return Path(shutil.make_archive(str(folder), "zip", folder))
