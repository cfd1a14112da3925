"""Where photos come from, which results a run goes on from, and what the command says."""

import io
import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sharpmask.batch import Propose, photo_id
from sharpmask.cli import main
from sharpmask.cli.cluster import told
from sharpmask.distributed import Summary, propose
from sharpmask.distributed.cluster import workers_that_fit
from sharpmask.distributed.manifest import Manifest
from sharpmask.distributed.places import Folder
from sharpmask.distributed.pool import Need
from sharpmask.distributed.results import Results
from sharpmask.distributed.run import Parts
from sharpmask.distributed.sources import Photo, photos_of
from sharpmask.errors import DataError
from sharpmask.places import content_of, place_of

from .fakes import Fake
from .folders import expected, rows

Photos = Callable[..., Path]
Capture = pytest.CaptureFixture[str]


def paths(*given: str | Path, recursive: bool = False) -> list[str]:
    return [photo.path for photo in photos_of(given, recursive=recursive)]


def test_places() -> None:
    assert place_of(Path("s3://bucket/a")) == place_of("s3://bucket/a") == "s3://bucket/a"
    assert place_of(Path("file:///tmp/a")) == place_of("/tmp/a") == "/tmp/a"
    assert place_of("S3://Bucket/A") == "s3://Bucket/A" and place_of("C:/a").startswith("/")
    assert place_of("simplecache::s3://bucket/a") == "simplecache::s3://bucket/a"
    assert place_of("a") == str(Path.cwd() / "a")
    with pytest.raises(DataError, match=r"nonsense://a: cannot be read: .*nonsense"):
        Folder("nonsense://a")


def test_photos_through_a_cache(photos: Photos) -> None:
    place = place_of(f"simplecache::file://{photos(1)}/0000.jpg")
    assert content_of(place) == b"0000.jpg" and [photo.path for photo in photos_of([place])] == [place]


def test_photos_of_a_folder(photos: Photos) -> None:
    folder = photos(2, "note.txt", ".hidden.jpg")
    (folder / "inner").mkdir()
    (folder / "inner" / "x.png").write_bytes(b"x")
    assert paths(folder) == [str(folder / "0000.jpg"), str(folder / "0001.jpg")]
    assert paths(folder, recursive=True) == [*paths(folder), str(folder / "inner" / "x.png")]
    ids = {photo.path: photo.id for photo in photos_of([folder], recursive=True)}
    assert ids[str(folder / "inner" / "x.png")] == photo_id("inner/x.png")
    assert next(iter(photos_of([folder / "0001.jpg"]))).id == ids[str(folder / "0001.jpg")], "however it is given"
    with pytest.raises(DataError, match="must be a folder, a photo"):
        paths(folder / "note")


def test_rows_with_errors_are_tried_again_and_the_others_kept(photos: Photos, tmp_path: Path, fake: Fake) -> None:
    results = Results(Folder(str(tmp_path / "out")), fake)
    results.open(resume=False, restart=False)
    results.manifest.add(photos_of([photos(5, "bad.jpg")]), 3)
    for part in results.manifest.parts():
        found = fake({"id": [p.id for p in part.photos], "path": [p.path for p in part.photos], "bytes": [None] * 3})
        results.write(part, {photo.id: found.slice(place, 1) for place, photo in enumerate(part.photos)})
    summary = results.summary(retry=True)
    assert (summary.rows, summary.left) == (5, {"part-0000-000001.parquet": 1}) and not results.summary().left
    before, parts = rows(tmp_path / "out"), Parts(results, summary, retry=True)
    (photo,) = parts.photos()
    assert (Path(photo.path).name, parts.done, parts.total) == ("bad.jpg", 5, 6)
    parts.add(photo, fake({"id": [photo.id], "path": ["/good.jpg"], "bytes": [None]}))
    after = rows(tmp_path / "out")
    assert after.pop("good.jpg")["error"] is None and before.pop("bad.jpg")["error"]
    assert after == before and not results.summary().failed


@pytest.mark.parametrize(("share", "fit"), [(0, 16), (0.1, 16), (0.2, 10), (0.4, 4), (1, 2), (2, 1), (3, 0)])
def test_workers_that_fit(share: float, fit: int) -> None:
    """Shares of a GPU are of one GPU each."""
    node = {"Alive": True, "Resources": {"CPU": 16.0, "GPU": 2.0, "memory": 64e9}}
    ray = SimpleNamespace(nodes=lambda: [node, node, {"Alive": False, "Resources": {}}])
    assert workers_that_fit(ray, Need(1, share, 10**9)) == 2 * fit


def test_more_manifests_than_four_digits_count(tmp_path: Path) -> None:
    manifest = Manifest(Folder(str(tmp_path)))
    for name in ("a", "b", "c"):
        manifest.add([Photo(name, f"/{name}.jpg")], 1)
    (tmp_path / "manifest-0002.parquet").rename(tmp_path / "manifest-10000.parquet")
    (tmp_path / "manifest-0001.parquet").rename(tmp_path / "manifest-9999.parquet")
    manifest.add([Photo(name, f"/{name}.jpg") for name in "abcd"], 1)
    parts = {part.name: [photo.id for photo in part.photos] for part in manifest.parts()}
    names = ("0000", "9999", "10000", "10001")
    assert list(parts.items()) == [(f"part-{n}-000000.parquet", [id]) for n, id in zip(names, "abcd", strict=True)]


def test_photos_of_lists_and_tables(photos: Photos, tmp_path: Path) -> None:
    folder = photos(3)
    (tmp_path / "list.txt").write_text(f"photos/0000.jpg\r\n\n{folder}/0001.jpg\ns3://b/c.jpg\n")
    assert paths(tmp_path / "list.txt") == [f"{folder}/0000.jpg", f"{folder}/0001.jpg", "s3://b/c.jpg"]
    pq.write_table(pa.table({"path": ["photos/0002.jpg", "s3://b/c.jpg"], "id": [7, 8]}), tmp_path / "t.parquet")
    assert [(p.id, p.path) for p in photos_of([tmp_path / "t.parquet"])] == [
        ("7", f"{folder}/0002.jpg"),
        ("8", "s3://b/c.jpg"),
    ]
    pq.write_table(pa.table({"file": ["a"]}), tmp_path / "wrong.parquet")
    with pytest.raises(DataError, match="must have a column path, got file"):
        paths(tmp_path / "wrong.parquet")
    (tmp_path / "text.parquet").write_text("no table")
    with pytest.raises(DataError, match="must be a Parquet file"):
        paths(tmp_path / "text.parquet")
    with pytest.raises(DataError, match=r"missing.txt: cannot be read: No such file"):
        paths(tmp_path / "missing.txt")


def archive(path: Path, **contents: bytes) -> Path:
    with tarfile.open(path, "w") as file:
        for name, content in contents.items():
            member = tarfile.TarInfo(name.replace("_", "."))
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return path


def test_photos_of_an_archive(tmp_path: Path) -> None:
    """The shards of a WebDataset: photos beside their texts."""
    shard = archive(tmp_path / "shard-0.tar", a_jpg=b"one", a_json=b"{}", b_jpg=b"three" * 1000)
    found = list(photos_of([shard]))
    assert [photo.path for photo in found] == [f"{shard}/a.jpg", f"{shard}/b.jpg"]
    assert [content_of(str(photo.archive), photo.offset, photo.size) for photo in found] == [b"one", b"three" * 1000]
    assert found[0].id == photo_id("shard-0.tar/a.jpg")
    with pytest.raises(DataError, match=r"must be a plain \.tar"):
        paths(tmp_path / "shard.tar.gz")
    (tmp_path / "torn.tar").write_bytes(shard.read_bytes()[:700])
    with pytest.raises(DataError, match=r"torn\.tar: cannot be read"):
        paths(tmp_path / "torn.tar")


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    odd = folder / b"\xff\xe9.jpg".decode("utf-8", "surrogateescape")
    odd.touch()
    (folder / "a.jpg").touch()
    manifest = Manifest(Folder(str(tmp_path)))
    assert manifest.add(photos_of([folder]), 1) == 2
    parts = list(manifest.parts())
    assert [part.photos for part in parts] == [[photo] for photo in photos_of([folder])]
    assert [part.name for part in parts] == ["part-0000-000000.parquet", "part-0000-000001.parquet"]
    assert manifest.add(photos_of([folder, folder / "a.jpg"]), 1) == 0
    assert manifest.names() == ["manifest-0000.parquet"]
    assert Manifest(Folder(str(tmp_path / "twice"))).add(photos_of([folder, folder]), 5) == 2


@pytest.mark.parametrize(("root", "named"), [("photos", "inner/x.jpg"), (".", "photos/inner/x.jpg")])
def test_ids_are_those_of_propose(
    root: str, named: str, photos: Photos, tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same folder, whether a run or an engine's pipeline searched it."""
    monkeypatch.chdir(tmp_path)
    (photos(2) / "inner").mkdir()
    (tmp_path / "photos" / "inner" / "x.jpg").write_bytes(b"x")
    settings = Propose(tiny_checkpoint, root=root)
    found = list(photos_of(["photos"], recursive=True, root=None if root == "photos" else str(settings.root)))
    monkeypatch.chdir("/")  # as workers have another folder
    assert settings({"path": [photo.path for photo in found]})["id"].to_pylist() == [photo.id for photo in found]
    assert len({photo.id for photo in found}) == 3 and photo_id(named) in {photo.id for photo in found}


def test_ids_with_a_root(photos: Photos, tmp_path: Path) -> None:
    folder, root = photos(1), str(tmp_path)
    (tmp_path / "list.txt").write_text("photos/0000.jpg")
    given = [folder, folder / "0000.jpg", tmp_path / "list.txt"]
    assert [photo.id for photo in photos_of(given, root=root)] == [photo_id("photos/0000.jpg")] * 3
    shard = archive(folder / "shard.tar", a_jpg=b"one")
    assert [photo.id for photo in photos_of([shard], root=root)] == [photo_id("photos/shard.tar/a.jpg")]


def test_a_photo_has_one_id_and_an_id_one_photo(photos: Photos, tmp_path: Path) -> None:
    """Also when a run goes on: neither is a photo passed over nor has it two rows."""
    folder, other = photos(2), tmp_path / "other"
    other.mkdir()
    (other / "0001.jpg").write_bytes(b"x")
    manifest = Manifest(Folder(str(tmp_path / "run")))
    with pytest.raises(
        DataError, match=r"must have an id each, got '\w+' for .*other/0001.jpg and another one; .*--root"
    ):
        manifest.add(photos_of([folder, other]), 5)
    assert manifest.add(photos_of([folder]), 5) == 2
    with pytest.raises(DataError, match=r"must have an id each.*, if the photo has moved"):
        manifest.add(photos_of([other]), 5)
    with pytest.raises(DataError, match=r"0000.jpg must have one id in a run, got .* and another one; .*--restart"):
        manifest.add(photos_of([folder], root=str(tmp_path)), 5)
    assert len(manifest) == 2
    photos(0, "0000a.jpg")
    assert manifest.add(photos_of([folder]), 5) == 1
    both = Manifest(Folder(str(tmp_path / "both")))
    assert both.add(photos_of([folder, other], root=str(tmp_path)), 5) == 4


def opened(folder: Path, fake: Fake, **options: bool) -> Results:
    results = Results(Folder(str(folder)), fake)
    results.open(**({"resume": False, "restart": False} | options))
    return results


def test_results_of_other_settings_are_refused(tmp_path: Path, fake: Fake) -> None:
    opened(tmp_path, fake)
    (tmp_path / "mine.txt").touch()
    opened(tmp_path, fake, resume=True)
    other = Fake(fake.notes, top_n=5)
    with pytest.raises(DataError, match=r"other settings: top_n was 100 and is 5; give the same, or another --out, or"):
        opened(tmp_path, other, resume=True)
    opened(tmp_path, other, restart=True)
    assert json.loads((tmp_path / "_run" / "run.json").read_text())["settings"]["top_n"] == 5
    assert (tmp_path / "mine.txt").exists(), "what is not of a run stays"
    (tmp_path / "_run" / "run.json").write_text("{")
    with pytest.raises(DataError, match=r"_run/run.json: damaged"):
        opened(tmp_path, other, resume=True)
    (tmp_path / "_run" / "run.json").unlink()
    (tmp_path / "part-0000-000000.parquet").touch()
    with pytest.raises(DataError, match=r"has results without _run/run.json"):
        opened(tmp_path, other, resume=True)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_photos_that_are_added_are_all_that_is_searched(photos: Photos, fake: Fake) -> None:
    folder, out = photos(15), photos(15).parent / "out"
    options: dict[str, Any] = {"workers": 1, "memory": 0.1, "rows_per_file": 10}
    propose(folder, out, fake, **options)
    (out / "part-0000-000001.parquet").write_bytes(b"torn")
    photos(15, "aa.jpg", "zz.jpg")
    said: list[str] = []
    summary = propose(folder, out, fake, **options, resume=True, say=said.append)
    assert summary.rows == 17 and len(fake.searched()) == 15 + 5 + 2
    assert said == [f"10 photos have rows in {out}"]
    assert rows(out) == expected(folder, out, fake)
    assert sorted(path.name for path in out.glob("part-*")) == [
        "part-0000-000000.parquet",
        "part-0000-000001.parquet",
        "part-0001-000000.parquet",
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_photos_in_an_archive_are_searched(tmp_path: Path, fake: Fake) -> None:
    shard = archive(tmp_path / "shard.tar", a_jpg=b"one", b_jpg=b"three" * 1000)
    summary = propose(shard, tmp_path / "out", fake, workers=1, memory=0.1)
    assert summary.rows == 2
    assert [row["width"] for row in rows(tmp_path / "out").values()] == [3, 5000], "what the fake was given"


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_the_rows_are_those_of_the_model(synth: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """By the command, with a local cluster's place taken by the one that the program is connected to."""
    out = tmp_path / "out"
    arguments = [synth / "images", "--cluster", "ray", "--workers", 1, "--worker-memory", 0.1, "--rows-per-file", 4]
    given = [str(a) for a in (*arguments, "--checkpoint", tiny_checkpoint, "--top-n", 10, "--out", out, "--quiet")]
    assert main(["propose", *given]) == 0
    settings = Propose(tiny_checkpoint, top_n=10)
    found = rows(out)
    for path in sorted((synth / "images").iterdir()):
        (alone,) = settings({"path": [str(path)], "id": [found[path.name]["id"]]}).drop(["path", "seconds"]).to_pylist()
        assert found[path.name] | {"seconds": None} == alone | {"seconds": None}
    table = pq.read_table(out / "part-0000-000000.parquet")
    assert table.num_rows == 4 and table.schema.equals(settings.schema(), check_metadata=True)


def test_options_that_do_not_fit(tmp_path: Path, capsys: Capture) -> None:
    def said(*arguments: object) -> str:
        assert main(["propose", str(tmp_path), *map(str, arguments)]) == 2
        return capsys.readouterr().err

    assert "workers: it needs --cluster ray" in said("--workers", 2)
    assert "restart and resume: give one of the two" in said("--cluster", "ray", "--restart", "--resume")
    assert "retry-errors: it needs --resume" in said("--cluster", "ray", "--retry-errors")
    assert "cluster: it writes Parquet" in said("--cluster", "ray", "--format", "yolo")
    assert "device must be cpu or cuda with --cluster, got 'auto'" in said("--cluster", "ray", "--device", "auto")
    assert "images: no file or folder" in said(tmp_path / "missing.jpg", "--cluster", "ray")
    (tmp_path / "file").touch()
    assert "out: " in said("--cluster", "ray", "--out", tmp_path / "file")


def test_errors_are_shown_and_make_the_exit_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    summary = Summary(rows=100)
    for number in range(30):
        summary.add(f"/a/{number}.jpg", f"/a/{number}.jpg: cannot be read")
    assert told(summary, Path("out"), quiet=False) == 1
    said = capsys.readouterr()
    assert re.search(r"30 +cannot be read\n", said.out) and "out: 100 rows, 30 of them with an error" in said.out
    assert "/a/19.jpg: cannot be read" in said.err and "/a/20.jpg" not in said.err and "and 10 more" in said.err
    assert told(Summary(rows=5), Path("out"), quiet=False) == 0
    assert told(Summary(rows=5, left={"part-0000-000001.parquet": 3}), Path("out"), quiet=True) == 1
    assert "3 photos have no row" in capsys.readouterr().err


PROBE = """
import sys
import sharpmask
from sharpmask.cli import main
try:
    main(["propose", "--help"])
except SystemExit:
    pass
import sharpmask.distributed
print("PROBE", [name for name in ("ray", "pyarrow", "torch") if name in sys.modules])
"""


def test_neither_import_nor_help_imports_ray() -> None:
    ended = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "PROBE []"
