"""Frames of videos, read by PyAV one at a time. Files may come from strangers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import DataError, one_line
from ..files import atomic, short_name, write_text
from ..packages import needed
from .images import MAX_PIXELS, check_size
from .photos import FoundPhoto

SUFFIXES: Final = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg")
CONTAINERS: Final = "mov,matroska,avi,mpeg"
"""What a file may be: playlists and the like, which name other files, are not among them."""
MAX_FRAMES: Final = 100_000


class Frame(NamedTuple):
    number: int
    """Counted from 0 in the order in which frames are shown."""
    seconds: float | None
    """When it is shown, if the file says so."""
    pixels: NDArray[np.uint8]
    """(h, w, 3) RGB, turned as players show it."""


def is_video(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.is_dir()


def frames(path: Path, every: int = 1) -> Iterator[Frame]:
    """Every ``every``-th frame of a video, from the first on. One frame is in memory at a time.

    Raises ``DataError`` that names the file where it is no video, is damaged, or has frames larger than photos may be.
    """
    av = needed("av", "propose of videos", "video")
    name, number = one_line(str(path)), 0
    if not path.is_file():
        raise DataError(f"{name}: must be a video file, got {'a folder' if path.is_dir() else 'no regular file'}")
    try:
        # A file that is open already, so that nothing in it makes FFmpeg open another one.
        with (
            open(path, "rb") as file,
            av.open(file, options={"format_whitelist": CONTAINERS, "protocol_whitelist": "none"}) as container,
        ):
            if not container.streams.video:
                raise DataError(f"{name}: must have pictures, got a file of sound or text alone")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise DataError(f"{name}: must be coded in a way that FFmpeg knows, got one that it does not")
            check_size(name, stream.width, stream.height, MAX_PIXELS)
            stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
            for number, frame in enumerate(container.decode(stream)):
                if number % every == 0:
                    check_size(name, frame.width, frame.height, MAX_PIXELS)
                    yield Frame(number, frame.time, _turned(frame))
    except DataError:
        raise
    except Exception as error:  # of damaged files PyAV raises nearly anything
        where = f"after frame {number}" if number else "as a video"
        text = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{name}: cannot be read {where}: {' '.join(text.split())}") from None


def _turned(frame: Any) -> NDArray[np.uint8]:
    """A frame's pixels, turned as the file says: by degrees against the clock."""
    pixels = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))


class Extracted(NamedTuple):
    photos: list[FoundPhoto]
    error: DataError | None
    """Why the rest of the video is missing."""


def clip_name(path: Path) -> str:
    """What the folder of a video's frames is called: inside the others' folder, whatever the video is called."""
    return short_name(path.stem.strip(".") or "video")


def extract(path: Path, every: int, folder: Path) -> Extracted:
    """Write every ``every``-th frame of a video as ``folder/CLIP/NUMBER.png``, and ``frames.csv``, their times.

    A damaged video gives the frames before the damage.
    """
    place = folder / clip_name(path)
    photos: list[FoundPhoto] = []
    lines = ["frame,seconds,file\n"]
    error = None
    try:
        for frame in frames(path, every):
            if len(photos) == MAX_FRAMES:
                raise DataError(
                    f"{path}: must give at most {MAX_FRAMES} frames, got more; a larger --every gives fewer"
                )
            file = place / f"{frame.number:06d}.png"
            with atomic(file) as part:
                Image.fromarray(frame.pixels).save(part, format="PNG", compress_level=1)
            photos.append(FoundPhoto(file, file.name))
            seconds = "" if frame.seconds is None else f"{frame.seconds:.3f}"
            lines.append(f"{frame.number},{seconds},{file.name}\n")
        if not photos:
            raise DataError(f"{one_line(str(path))}: must have a frame, got none")
    except DataError as found:
        error = found
    if photos:
        write_text(place / "frames.csv", lines)
    return Extracted(photos, error)
