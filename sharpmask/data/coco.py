"""A folder of photos with a COCO `instances` file, read and checked."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .annotations import BadEntry, show
from .images import ImageCache, load_image, read_header
from .layouts import PhotoFiles, find_annotations, read_document
from .links import Links, Outside
from .objects import Instance, ObjectReader
from .orientation import Exif
from .packed import Packed

_SKIP_HINT = "(skip_bad=True, or --skip-bad on the command line, leaves such entries out)"


@dataclass(frozen=True, slots=True)
class Photo:
    """One image of the folder. `height` and `width` agree with the header of the image file."""

    id: int
    path: Path
    height: int
    width: int
    instances: tuple[Instance, ...]
    complete: bool = True
    """Whether every object is annotated, so that all pixels beside the instances are known to be background."""
    exif: Exif = "stored"
    """Which pixels `height`, `width` and the instances refer to."""
    source: str = ""
    """Where the photo is from, without what names the single photo; empty if the file does not say."""

    def load(self) -> NDArray[np.uint8]:
        """Decode the photo: uint8 (h, w, 3), RGB. Raises DataError if it is damaged."""
        return load_image(self.path, exif=self.exif)


class _Image(NamedTuple):
    """What an entry of `images` says, checked."""

    path: Path
    height: int
    width: int
    complete: bool
    source: str


class CocoFolder:
    """Images plus COCO `instances` annotations (polygons, RLE, crowds).

    `annotations` names the annotation file; without it, it is found as docs/own-data.md describes, and so are the
    photos. `categories` keeps only the objects of these category names; photos without objects stay. `exif` says
    whether annotations refer to photos `stored` or `turned` by their EXIF orientation; without it, photos with an
    orientation other than 1 raise DataError. `links="refuse"` treats files outside `root`, which only symbolic links
    can reach, as bad entries. `partial` says that the photos hold objects without an annotation; the file says the
    same of one photo by `"complete": false` in its image entry, and of all by `"complete": false` in `info`.

    The constructor checks the JSON, ids, sizes, polygons and RLEs, and the presence and header of every image. It
    draws each mask once: boxes and areas are those of the drawn masks. A line of `notes` says how many annotated
    ones differ; if most boxes have another meaning, DataError names it. Pixels are decoded on request, so that all
    of COCO fits into memory.

    A bad entry raises DataError with one line that names the file and the id. With `skip_bad` the entry is left out
    instead and the line is appended to `skipped`. The object of such an entry becomes a crowd, since its pixels are
    no background; if nobody can tell where it is, its photo gets `complete=False`. An object with a box alone
    becomes a crowd, too.

    `photos` and their instances are sorted by id. `categories` maps ids to names, after the filter. `notes` are
    lines about the folder for its user, each with a count and an example.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        annotations: str | Path | None = None,
        categories: Sequence[str] | None = None,
        skip_bad: bool = False,
        exif: Exif | None = None,
        links: Links = "follow",
        partial: bool = False,
    ) -> None:
        if exif not in ("stored", "turned", None):
            raise ValueError(f"exif must be 'stored', 'turned' or None, got {exif!r}")
        if links not in ("follow", "refuse"):
            raise ValueError(f"links must be 'follow' or 'refuse', got {links!r}")
        self.root = Path(root)
        self.annotation_file = Path(annotations) if annotations is not None else find_annotations(self.root)
        if not self.root.is_dir():
            raise DataError(f"{self.root}: no such folder")
        self.skip_bad, self.exif, self.links, self.partial = skip_bad, exif, links, partial
        self.skipped: list[str] = []
        self.notes: list[str] = []
        self.cache = ImageCache(exif=exif or "stored")
        outside = Outside(self.root)
        if annotations is None and outside.holds(self.annotation_file) and links == "refuse":
            raise DataError(f"{self.annotation_file}: must be in {self.root}, got a symbolic link that leads out of it")
        document = read_document(self.annotation_file)
        known = self._read_categories(document["categories"])
        self.categories = self._select(known, categories)
        self.partial |= not self._says_complete(document.get("info"))
        images = self._read_images(document["images"], outside)
        self.photos = Packed(Photo, self._read_annotations(document["annotations"], known, images))
        self.notes += outside.note()
        incomplete = [photo for photo in self.photos if not photo.complete]
        if incomplete:
            self.notes.append(
                f"{self.annotation_file}: partially annotated photos, which give no negatives: {len(incomplete)} of "
                f"{len(self.photos)}; first: image {incomplete[0].id}"
            )

    @property
    def is_background(self) -> bool:
        """Whether no photo has an object, and one at least is completely annotated: it is known to show background."""
        return not any(photo.instances for photo in self.photos) and any(photo.complete for photo in self.photos)

    def load(self, photo: Photo) -> NDArray[np.uint8]:
        """The pixels of `photo` from a cache of decoded photos: read-only uint8 (h, w, 3), RGB.

        Raises DataError if the file is damaged or no longer has the size it had when the folder was read.
        """
        image = self.cache.load(photo.path)
        if image.shape[:2] != (photo.height, photo.width):
            raise DataError(
                f"{photo.path}: must be {photo.width}x{photo.height} pixels (width x height), "
                f"got {image.shape[1]}x{image.shape[0]}"
            )
        return image

    def split(self, names: Collection[str]) -> tuple[CocoFolder, CocoFolder]:
        """The folder without the photos of these file names, and with these alone; they share all else."""
        rest, chosen = copy(self), copy(self)
        rest.photos = self.photos.where(lambda photo: photo.path.name not in names)
        chosen.photos = self.photos.where(lambda photo: photo.path.name in names)
        return rest, chosen

    def ground_truth(self) -> dict[str, Any]:
        """All photos and objects as a COCO `instances` dict that JSON can hold, with masks as compressed RLE."""
        return {
            "images": [
                {
                    "id": photo.id,
                    "file_name": photo.path.name,
                    "height": photo.height,
                    "width": photo.width,
                    "complete": photo.complete,
                    "source": photo.source,
                }
                for photo in self.photos
            ],
            "categories": [{"id": key, "name": name} for key, name in self.categories.items()],
            "annotations": [_to_coco(photo, instance) for photo in self.photos for instance in photo.instances],
        }

    def _reject(self, line: str) -> None:
        """Report a bad entry: note it with `skip_bad`, raise DataError without."""
        if not self.skip_bad:
            raise DataError(f"{line} {_SKIP_HINT}")
        self.skipped.append(line)

    def _entries(self, entries: list[Any], kind: str) -> Iterator[tuple[int, dict[str, Any]]]:
        """The entries with their ids. Rejects those that are no objects, or have no integer id or a repeated one."""
        seen: set[int] = set()
        where = f"{self.annotation_file}: {kind}"
        for position, entry in enumerate(entries):
            if not isinstance(entry, dict):
                self._reject(f"{where} at position {position}: must be an object, got {show(entry)}")
            elif type(entry.get("id")) is not int:
                self._reject(f"{where} at position {position}: id must be an integer, got {show(entry.get('id'))}")
            elif entry["id"] in seen:
                self._reject(f"{where} {entry['id']}: id must be unique, but it occurs more than once")
            else:
                seen.add(entry["id"])
                yield entry["id"], entry

    def _read_categories(self, entries: list[Any]) -> dict[int, str]:
        names: dict[int, str] = {}
        for key, entry in self._entries(entries, "category"):
            if isinstance(entry.get("name"), str):
                names[key] = entry["name"]
            else:
                got = show(entry.get("name"))
                self._reject(f"{self.annotation_file}: category {key}: name must be a text, got {got}")
        return names

    def _select(self, known: dict[int, str], names: Sequence[str] | None) -> dict[int, str]:
        if names is None:
            return known
        for name in names:
            if name not in known.values():
                raise DataError(
                    f"{self.annotation_file}: no category {name!r}, known are: "
                    f"{', '.join(sorted(set(known.values()))) or 'none'}"
                )
        return {key: name for key, name in known.items() if name in names}

    def _says_complete(self, info: Any) -> bool:
        """What the file says of all its photos. Raises DataError if it says neither yes nor no."""
        try:
            return _complete(info if isinstance(info, dict) else {})
        except BadEntry as error:
            raise DataError(f"{self.annotation_file}: info: {error}") from None

    def _read_images(self, entries: list[Any], outside: Outside) -> dict[int, _Image | None]:
        """The images by id; None for a rejected one."""
        files = PhotoFiles(self.root, self.annotation_file)
        images: dict[int, _Image | None] = {}
        turned: list[str] = []
        first: dict[Path, int] = {}
        repeated: list[int] = []
        for key, entry in self._entries(entries, "image"):
            try:
                path = files.find(entry.get("file_name"))
                if outside.holds(path) and self.links == "refuse":
                    raise BadEntry(f"{path}: must be in {self.root}, got a symbolic link that leads out of it")
                complete = _complete(entry) and not self.partial
                images[key] = _Image(path, *self._check_size(entry, path, turned), complete, _source(entry))
                if first.setdefault(path, key) != key:
                    repeated.append(key)
            except (BadEntry, DataError) as error:
                images[key] = None
                self._reject(f"{self.annotation_file}: image {key}: {error}")
        if turned:
            raise DataError(
                f"{self.annotation_file}: photos with an EXIF orientation: {len(turned)}; say which pixels are "
                f"annotated with exif='stored' or exif='turned' (--exif stored or --exif turned); first: {turned[0]}"
            )
        if repeated:
            self.notes.append(
                f"{self.annotation_file}: images that are the file of another one, whose objects are their background: "
                f"{len(repeated)}; first: image {repeated[0]}"
            )
        return images

    def _check_size(self, entry: dict[str, Any], path: Path, turned: list[str]) -> tuple[int, int]:
        """Height and width of a photo. Raises BadEntry or DataError if the file is not as annotated.

        A photo that EXIF turns is noted in `turned` if nobody has said which of its pixels are annotated.
        """
        header = read_header(path)
        given = entry.get("height"), entry.get("width")
        for side, value in zip(("height", "width"), given, strict=True):
            if type(value) not in (int, float):
                raise BadEntry(f"{side} must be a number of pixels, got {show(value)}")
        fitting = [exif for exif in ("stored", "turned") if header.size(exif) == given]
        if header.orientation != 1 and self.exif is None:
            only = f", and the annotated size fits {fitting[0]!r} only" if len(fitting) == 1 else ""
            turned.append(f"{path} has orientation {header.orientation}{only}")
            return header.size("stored")
        size = header.size(self.exif or "stored")
        if given == size:
            return size
        hint = ""
        if fitting:
            hint = f"; the annotated size fits exif={fitting[0]!r} (--exif {fitting[0]})"
        elif given == size[::-1]:
            hint = "; it was probably annotated after turning by EXIF, so store it upright"
        raise BadEntry(
            f"{path}: must be {show(given[1])}x{show(given[0])} pixels (width x height) as annotated, "
            f"got {size[1]}x{size[0]}{hint}"
        )

    def _read_annotations(
        self, entries: list[Any], known: dict[int, str], images: dict[int, _Image | None]
    ) -> list[Photo]:
        sizes = {key: image and (image.height, image.width) for key, image in images.items()}
        reader = ObjectReader(self.annotation_file, known, self.categories, sizes, self._reject, lenient=self.skip_bad)
        self.notes += reader.read(entries)
        if reader.doubtful:
            self.notes.append(
                f"{self.annotation_file}: photos with an object left out that cannot be located, which teach no "
                f"background: {len(reader.doubtful)}; first: image {min(reader.doubtful)}"
            )
        return [
            Photo(
                key,
                image.path,
                image.height,
                image.width,
                tuple(sorted(reader.instances[key], key=lambda instance: instance.id)),
                complete=image.complete and key not in reader.doubtful,
                exif=self.exif or "stored",
                source=image.source,
            )
            for key, image in sorted(images.items())
            if image is not None
        ]


def _complete(entry: dict[str, Any]) -> bool:
    """Whether an entry says that all objects are annotated, as it does unless it denies it."""
    complete = entry.get("complete", True)
    if not isinstance(complete, bool):
        raise BadEntry(f"complete must be true or false, got {show(complete)}")
    return complete


def _source(entry: dict[str, Any]) -> str:
    """Where an image is from: its `source` up to "@", which a version follows, or without the end of a path."""
    source = entry.get("source")
    if not isinstance(source, str):
        return ""
    place, at, _ = source.partition("@")
    return place if at else source.rpartition("/")[0] or source


def _to_coco(photo: Photo, instance: Instance) -> dict[str, Any]:
    """An object as an entry of a COCO `instances` file."""
    rle = instance.rle
    return {
        "id": instance.id,
        "image_id": photo.id,
        "category_id": instance.category_id,
        "bbox": list(instance.box),
        "area": instance.area,
        "iscrowd": int(instance.crowd),
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
    }
