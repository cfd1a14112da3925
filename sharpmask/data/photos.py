"""Finding the photos among files and folders."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from ..errors import DataError, counted, one_line
from .containers import parts_of
from .formats import missing_decoder, photo_suffixes

Kind = tuple[str, str]
"""What a folder's entry is, if it is no photo: for one and for several."""
SUBFOLDER: Final = "subfolder (--recursive looks into it)", "subfolders (--recursive looks into them)"
UNREADABLE: Final = "subfolder that cannot be read", "subfolders that cannot be read"
FOLDER_LINK: Final = "link to a folder", "links to folders"
BROKEN_LINK: Final = "broken link", "broken links"
HIDDEN: Final = "hidden file", "hidden files"
DEVICE: Final = "device or pipe", "devices or pipes"
OTHER: Final = "file of another kind", "files of another kind"
DRAWING: Final = "picture that sharpmask drew", "pictures that sharpmask drew"


class FoundPhoto(NamedTuple):
    """A photo to search."""

    path: Path
    name: str
    """Its path below the folder that was given, with slashes; of a photo that was given itself, its file name."""


class Found(NamedTuple):
    """The photos found, and a line for each folder in which something was passed over."""

    photos: list[FoundPhoto]
    passed_over: list[str]


def find_photos(paths: Sequence[Path], *, recursive: bool = False) -> Found:
    """The files of `paths` and the photos of its folders, each folder sorted by name, no file twice.

    Files are told by their suffix; pictures that this package has drawn are no photos. `recursive` looks into
    subfolders too, but follows no link to a folder. Raises DataError where there is nothing to search.
    """
    photos: dict[str, FoundPhoto] = {}
    lines = []
    for path in paths:
        if not path.is_dir():
            photos.setdefault(os.path.abspath(path), FoundPhoto(path, path.name))
            continue
        folder = Folder(path, recursive)
        inside = list(folder.photos())
        told = folder.passed_over()
        if not inside:
            raise DataError(f"{path}: no image file in this folder" + f"; passed over: {told}" * bool(told))
        for photo in inside:
            photos.setdefault(os.path.abspath(photo.path), photo)
        if told:
            lines.append(f"{one_line(str(path))}: passed over: {told}")
    if not photos:
        raise DataError("images must be photos or folders of photos, got none")
    return Found(list(photos.values()), lines)


class Folder:
    """One folder's photos, and counts of what else is in it."""

    def __init__(self, root: Path, recursive: bool) -> None:
        self.root, self.recursive = root, recursive
        self.others: dict[Kind, list[str]] = {}

    def photos(self, folder: Path | None = None) -> Iterator[FoundPhoto]:
        """The photos, sorted by path."""
        try:
            paths = sorted((folder or self.root).iterdir())
        except OSError as error:
            if folder is None:
                raise DataError(f"{self.root}: cannot be listed: {error.strerror or error}") from None
            self._pass(UNREADABLE, folder)
            return
        for path in paths:
            if path.is_dir():
                if not self.recursive:
                    self._pass(SUBFOLDER, path)
                elif path.is_symlink():
                    self._pass(FOLDER_LINK, path)
                else:
                    yield from self.photos(path)
            elif kind := _other_kind(path):
                self._pass(kind, path)
            else:
                yield FoundPhoto(path, path.relative_to(self.root).as_posix())

    def passed_over(self) -> str:
        """The counts as a text, with an example of each kind; empty if all were photos."""
        return ", ".join(
            f"{counted(len(names), one, many)}{', e.g.' if len(names) > 1 else ':'} {names[0]}"
            for (one, many), names in self.others.items()
        )

    def _pass(self, kind: Kind, path: Path) -> None:
        self.others.setdefault(kind, []).append(one_line(path.relative_to(self.root).as_posix()))


def _other_kind(path: Path) -> Kind | None:
    """What a folder's entry is, if it is no photo to search; otherwise None."""
    if path.name.startswith("."):
        return HIDDEN
    suffix = path.suffix.lower()
    if suffix not in photo_suffixes():
        return OTHER
    if not path.is_file():
        return BROKEN_LINK if path.is_symlink() else DEVICE
    if missing := missing_decoder(suffix):
        return f"photo that needs {missing}", f"photos that need {missing}"
    if _is_drawn(path):
        return DRAWING
    return None


def _is_drawn(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            parts = parts_of(file)
    except OSError:  # told when it is searched
        return False
    return parts is not None and parts.drawn
