"""What folders of results have, and must have."""

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from sharpmask.distributed.manifest import Manifest
from sharpmask.distributed.places import Folder
from sharpmask.distributed.results import INNER

from .fakes import Fake


def rows(out: Path) -> dict[str, dict[str, Any]]:
    """The rows of a folder by their photos' names. Fails where one has none or two, or is half-written."""
    found = [row for path in sorted(out.glob("part-*.parquet")) for row in pq.read_table(path).to_pylist()]
    asked = [photo.id for part in Manifest(Folder(str(out / INNER))).parts() for photo in part.photos]
    assert Counter(row["id"] for row in found) == Counter(asked), "each photo has exactly one row"
    assert [path.name for path in out.rglob(".*")] == [], "nothing half-written is left"
    return {Path(row.pop("path")).name: row for row in found}


def expected(folder: Path, out: Path, fake: Fake) -> dict[str, dict[str, Any]]:
    """The rows of an undisturbed search, by one call for each photo."""
    photos = [photo for part in Manifest(Folder(str(out / INNER))).parts() for photo in part.photos]
    calm = Fake(fake.notes, 0, fake.top_n)
    found = [calm({"id": [p.id], "path": [p.path], "bytes": [None]}).to_pylist()[0] for p in photos]
    return {Path(row.pop("path")).name: row for row in found}


def wait_for(condition: Callable[[], Any], seconds: float = 180) -> Any:
    """What ``condition`` gives when it is true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)
    return found
