"""Photos and results in an object store, which is a server of this machine."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sharpmask.batch import photo_id
from sharpmask.batch.writing import write_table
from sharpmask.cli import main
from sharpmask.distributed import propose
from sharpmask.distributed.manifest import Manifest
from sharpmask.distributed.places import Folder
from sharpmask.distributed.sources import photos_of

from .fakes import Fake


def found(out: str) -> list[dict[str, Any]]:
    folder = Folder(out)
    parts = [name for name in folder.names() if name.startswith("part-")]
    return [row for name in parts for row in pq.read_table(folder.open(name)).to_pylist()]


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
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


def test_ids_in_a_store(store: Callable[..., str]) -> None:
    bucket = store({"ids/photos/a.jpg": b"x", "ids/photos/in/b.jpg": b"x"})
    given = f"{bucket}/ids/photos"
    for root in (None, f"{bucket}/ids"):
        ids = {photo.path: photo.id for photo in photos_of([given], recursive=True, root=root)}
        assert ids == {path: photo_id(path, root or given) for path in (f"{given}/a.jpg", f"{given}/in/b.jpg")}


def test_rows_in_a_store(
    store: Callable[..., str], fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By ``sharpmask results``, without those that are no rows."""
    photos = [{"id": [f"{n:016x}"], "path": [f"/bad-{n}.jpg"], "bytes": [b"x"]} for n in range(5)]
    table = pa.concat_tables(map(fake, photos))  # failed, as the fake's masks are none
    for name in ("part-0000-000000.parquet", "part-0000-000001.parquet", "_run/manifest-0000.parquet"):
        write_table(table.slice(0, 3) if name.endswith("0.parquet") else table.slice(3), tmp_path / "rows.parquet")
        bucket = store({f"rows/{name}": (tmp_path / "rows.parquet").read_bytes()})
    assert main(["results", f"{bucket}/rows", "--to", "parquet", "--out", str(tmp_path / "all.parquet")]) == 0
    assert f"{tmp_path}/all.parquet: 5 photos, 0 proposals" in capsys.readouterr().out.replace("\n", "")
    assert pq.read_table(tmp_path / "all.parquet")["id"].to_pylist() == table["id"].to_pylist()
    assert main(["results", f"{bucket}/rows/part-0000-000001.parquet"]) == 0
    assert capsys.readouterr().out.startswith("2 rows, 2 of them failed")
