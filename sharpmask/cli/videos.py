"""The frames of videos, as photos to search."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..data.photos import FoundPhoto
from ..data.video import clip_name, extract
from ..errors import DataError, counted, one_line
from ..packages import check
from .options import Propose
from .output import ERR, say

FRAMES = "frames"
"""The folder of frames, in the output folder."""


def check_videos(videos: Sequence[Path], options: Propose) -> None:
    """Raise ``DataError`` where videos cannot be searched."""
    check("av", "propose of videos", "video")
    if options.json:
        raise DataError(f"json must have one photo, got the video {videos[0]}; leave out --json for files of all")
    by_name: dict[str, Path] = {}
    for path in dict.fromkeys(videos):
        other = by_name.setdefault(clip_name(path).lower(), path)
        if other is not path:
            raise DataError(
                f"images: the frames of {other} and {path} would share a folder; search them in two runs, or rename one"
            )


def frames_of(videos: Sequence[Path], options: Propose) -> tuple[list[FoundPhoto], dict[Path, DataError]]:
    """The frames of the videos, written into the output folder, and why some could not be read whole, which is said."""
    photos: list[FoundPhoto] = []
    failed: dict[Path, DataError] = {}
    for path in dict.fromkeys(videos):
        found = extract(path, options.every, options.out / FRAMES)
        photos += found.photos
        if found.error:
            failed[path] = found.error
            say(f"sharpmask: {found.error}", ERR)
        if found.photos and not options.quiet:
            say(f"{one_line(str(path))}: {counted(len(found.photos), 'frame')}", ERR)
    return photos, failed
