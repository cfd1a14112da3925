"""Photos and results in an object store, which is a server of this machine."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from sharpmask.distributed import propose
from sharpmask.distributed.manifest import Manifest
from sharpmask.distributed.places import Folder
from sharpmask.distributed.sources import photos_of

from .fakes import Fake

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cluster")]


def found(out: str) -> list[dict[str, Any]]:
    folder = Folder(out)
    parts = [name for name in folder.names() if name.startswith("part-")]
    return [row for name in parts for row in pq.read_table(folder.open(name)).to_pylist()]


def test_a_run_in_a_store(store: Callable[..., str], tmp_path: Path, fake: Fake) -> None:
    names = [f"photos/{number:02d}.jpg" for number in range(12)]
    bucket = store({name: name.encode() for name in (*names, "photos/note.txt", "photos/in/a.jpg")})
    assert [photo.path for photo in photos_of([f"{bucket}/photos"])] == [f"{bucket}/{name}" for name in names]
    assert len(list(photos_of([f"{bucket}/photos"], recursive=True))) == 13
    assert [photo.path for photo in photos_of([f"{bucket}/photos/1*.jpg"])] == [f"{bucket}/{n}" for n in names[10:]]
    options: dict[str, Any] = {"workers": 2, "memory": 0.1, "rows_per_file": 5}
    assert propose(f"{bucket}/photos", f"{bucket}/out", fake, **options).rows == 12
    first = found(f"{bucket}/out")
    parts = list(Manifest(Folder(f"{bucket}/out/_run")).parts())
    assert Counter(row["id"] for row in first) == Counter(photo.id for part in parts for photo in part.photos)
    begun = len(fake.searched())
    assert propose(f"{bucket}/photos", f"{bucket}/out", fake, **options, resume=True).rows == 12
    assert len(fake.searched()) == begun
    Folder(f"{bucket}/out").remove(parts[1].name)
    # Two runs at once, which nothing forbids there, write the same.
    assert propose(f"{bucket}/photos", f"{bucket}/out", fake, **options, resume=True).rows == 12
    assert len(fake.searched()) == begun + 5 and found(f"{bucket}/out") == first
