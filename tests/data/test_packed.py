"""Photos in arrays: the same records, and memory that processes share."""

from __future__ import annotations

import gc
import os
from array import array
from collections.abc import Sequence
from pathlib import Path

import pytest

from sharpmask.data.coco import CocoFolder, Photo
from sharpmask.data.objects import Instance
from sharpmask.data.packed import Packed


def instance(number: int, segmentation: object) -> Instance:
    return Instance(
        number, number % 3, (0.1 * number, 2.0, 1 / 3, 5.0), 7.0 + number, number % 2 == 0, 40, 30, segmentation
    )  # type: ignore[arg-type]


def polygon(number: int, points: int = 3) -> array[float]:
    return array("d", [number + 0.1 * k for k in range(2 * points)])


PHOTOS = [
    Photo(7, Path("a/ä b.jpg"), 40, 30, ()),
    Photo(
        2**70, Path(os.fsdecode(b"a/\xff.jpg")), 40, 30, (instance(1, b"RLE"), instance(2, (polygon(1), polygon(2, 5))))
    ),
    Photo(9, Path("/a/c.jpg"), 41, 30, (instance(-3, b""), instance(4, (polygon(4),))), complete=False, exif="turned"),
]


def test_records_are_as_they_were() -> None:
    packed = Packed(Photo, PHOTOS)
    assert list(packed) == PHOTOS and len(packed) == 3
    assert packed[-1] == PHOTOS[-1] and list(packed[1:]) == PHOTOS[1:]
    box, area = packed[1].instances[0].box, packed[1].instances[0].area
    assert {type(value) for value in (*box, area)} == {float} and type(packed[0].id) is int
    for place in (3, -4):
        with pytest.raises(IndexError):
            packed[place]
    chosen = packed.where(lambda photo: bool(photo.instances))
    for name in ("id", "path", "complete", "exif", "source"):
        assert packed.values(name) == [getattr(record, name) for record in PHOTOS]
    assert list(chosen) == PHOTOS[1:] and list(chosen[1:]) == PHOTOS[2:]
    assert list(Packed(Photo, [])) == []
    both = Packed.joined(Photo, [chosen, PHOTOS[:1], packed[:0]])
    assert both.values("id") == [record.id for record in both]
    assert list(both) == [*PHOTOS[1:], PHOTOS[0]] and list(both.take([2, 0])) == [PHOTOS[0], PHOTOS[1]]


def test_a_folder_s_photos_draw_the_same_masks(synth: Path) -> None:
    folder = CocoFolder(synth)
    assert isinstance(folder.photos, Packed) and folder.photos[0] == folder.photos[0]
    assert all(each.mask().sum() == each.area for photo in folder.photos for each in photo.instances)


def copied(records: Sequence[Photo]) -> int:
    """Bytes of memory that a forked process has for its own after it has read all records."""

    def own() -> int:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:")) * 1024

    gc.collect()
    reader, writer = os.pipe()
    if not (child := os.fork()):
        gc.disable()  # It writes to all objects of the process.
        before = own()
        for record in records:
            _ = [len(polygon) for each in record.instances for polygon in each.segmentation]  # type: ignore[arg-type]
        os.write(writer, str(own() - before).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader) as file:
        return int(file.read())


def test_a_process_that_reads_all_photos_copies_none() -> None:
    objects = [tuple(instance(9 * n + k, (polygon(k, 30),)) for k in range(9)) for n in range(6000)]
    photos = [Photo(n, Path(f"{n}.jpg"), 40, 30, each) for n, each in enumerate(objects)]
    # The least of some tries: what else the process holds may be written to as well.
    listed, packed = (min(copied(each) for _ in range(3)) for each in (photos, Packed(Photo, photos)))
    assert packed < listed / 5
