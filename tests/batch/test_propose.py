"""The callable of engines: what it gives for good and bad photos, what it takes along, what tells its rows apart."""

import dataclasses
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from sharpmask import DataError, ProposalGenerator, load_model, packages
from sharpmask.batch import Propose, photo_id, schema, write_rows
from sharpmask.batch import propose as module
from sharpmask.cli.search_options import EngineOptions, SearchOptions
from sharpmask.cli.shared import make_generator, settings_of
from sharpmask.fingerprint import differences, fingerprint
from sharpmask.models.config import SearchConfig

Patch = pytest.MonkeyPatch


def test_a_row_has_what_the_generator_finds(photos: Path, propose: Propose, table: Any, tiny_checkpoint: Path) -> None:
    assert table.schema.equals(propose.schema(), check_metadata=True) and len(table) == 3
    row = table.to_pylist()[1]
    found = ProposalGenerator(load_model(tiny_checkpoint), top_n=6).generate(photos / "b.png")
    assert (row["height"], row["width"]) == found.size == (120, 160)
    assert row["path"] == str(photos / "b.png") and row["error"] is None and row["seconds"] > 0
    assert [p["counts"].encode() for p in row["proposals"]] == [rle["counts"] for rle in found.rles] != []
    assert [p["score"] for p in row["proposals"]] == found.scores.tolist()
    assert [p["bbox"] for p in row["proposals"]] == found.boxes.tolist()
    assert [p["area"] for p in row["proposals"]] == found.areas.tolist()


def test_a_bad_photo_is_a_row_with_an_error(photos: Path, propose: Propose) -> None:
    good, hostile = photos / "b.png", b"GIF89a\xff\xff\xff\xff\0\0\0" + bytes(50)
    batch = {
        "path": [str(photos / "c.png"), "missing.jpg", "a\udcff\n.jpg", None, 3, str(photos), "\0", str(good)],
        "bytes": [None, None, None, hostile, None, None, None, "text"],
    }
    rows = propose({name: np.array(values, dtype=object) for name, values in batch.items()}).to_pylist()
    for row, said in zip(
        rows,
        [
            "c.png: ",
            "missing.jpg: no such",
            r"a\udcff\n.jpg: no such",
            "image: ",
            "got 3",
            "a folder",
            "null",
            "'text'",
        ],
        strict=True,
    ):
        assert said in row["error"] and "\n" not in row["error"]
        assert row["id"] and row["height"] is row["width"] is row["proposals"] is None
        assert row["fingerprint"] == propose.fingerprint
    assert len({row["id"] for row in rows}) == len(rows)
    assert propose({"path": []}).schema == schema()


def test_out_of_memory_is_a_row_and_a_fault_of_the_machine_is_none(
    photos: Path, propose: Propose, monkeypatch: Patch
) -> None:
    def failing(error: Exception) -> Callable[..., Any]:
        def generate(*_: Any) -> Any:
            raise error

        return generate

    batch = {"path": [photos / "b.png"]}
    monkeypatch.setattr(ProposalGenerator, "generate", failing(torch.OutOfMemoryError("CUDA")))
    assert propose(batch)["error"].to_pylist() == ["out of memory while it was searched; a smaller max_side takes less"]
    monkeypatch.setattr(ProposalGenerator, "generate", failing(RuntimeError("CUDA error: launch failure")))
    with pytest.raises(RuntimeError, match="launch failure"):
        propose(batch)


@pytest.mark.parametrize("kind", ["dict", "arrow", "pandas"])
def test_batches_of_all_engines(kind: str, photos: Path, propose: Propose, table: Any) -> None:
    content = (photos / "b.png").read_bytes()
    columns = {"id": ["mine", None], "bytes": [content, content], "path": [None, str(photos / "b.png")], "else": [1, 2]}
    batch: Any = columns
    if kind == "arrow":
        batch = pa.table(columns)
    elif kind == "pandas":
        batch = pd.DataFrame(columns)
    rows = propose(batch).to_pylist()
    same = table.to_pylist()[1]
    assert [row["id"] for row in rows] == ["mine", same["id"]]
    assert rows[0]["proposals"] == rows[1]["proposals"] == same["proposals"]


def test_photos_at_urls(photos: Path, propose: Propose, table: Any, monkeypatch: Patch) -> None:
    with fsspec.open("memory://bucket/b.png", "wb") as file:
        file.write((photos / "b.png").read_bytes())
    urls = ["memory://bucket/b.png", "memory://bucket/none.png", "nosuch://x"]
    rows = propose({"path": urls}).to_pylist()
    assert rows[0]["proposals"] == table.to_pylist()[1]["proposals"]
    assert rows[1]["error"].startswith("memory://bucket/none.png: cannot be fetched: ")
    assert rows[2]["error"].startswith("nosuch://x: cannot be fetched: ")
    monkeypatch.setattr(module, "MOST_BYTES", 10)
    assert propose({"path": urls[:1]})["error"].to_pylist() == [f"{urls[0]}: must have at most 10 bytes, got more"]


def test_it_takes_no_model_along_and_a_process_loads_it_once(
    photos: Path, propose: Propose, monkeypatch: Patch
) -> None:
    content = pickle.dumps(propose)
    assert len(content) < 2000
    loaded = []
    monkeypatch.setattr("sharpmask.checkpoint.load_model", lambda *given: loaded.append(given) or load_model(*given))
    module._made.cache_clear()
    for _ in range(2):
        pickle.loads(content)({"path": [photos / "b.png"]})
    assert len(loaded) == 1


def test_ids(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.chdir(tmp_path)
    known = photo_id("a/b.jpg")
    assert known == "b12e0d83cb6b4a4c" or len(known) == 16
    assert photo_id(Path("x/a/b.jpg"), "x") == photo_id(tmp_path / "x" / "a" / "b.jpg", "x/") == known
    assert photo_id("s3://bucket/x/a/b.jpg", "s3://bucket/x") == known
    assert len({photo_id(path, "x") for path in ("xa/b.jpg", "../x/b.jpg", "s3://x/a/b.jpg", "x/a/b.jpg")}) == 4


def test_the_fingerprint_tells_settings_apart(propose: Propose, tiny_checkpoint: Path, tmp_path: Path) -> None:
    own = load_model(tiny_checkpoint).search
    assert Propose(tiny_checkpoint, top_n=6, search=own, device="auto", root="x").fingerprint == propose.fingerprint
    shutil.copy(tiny_checkpoint, tmp_path / "copy")
    assert Propose(tmp_path / "copy", top_n=6).fingerprint == propose.fingerprint
    others = [
        dataclasses.replace(propose, top_n=7),
        dataclasses.replace(propose, search=SearchConfig(scales=(1.0,))),
        dataclasses.replace(propose, refine=False),
        Propose("small", top_n=6),
    ]
    assert len({propose.fingerprint, *(other.fingerprint for other in others)}) == 5
    assert differences(propose.record, others[0].record) == "top_n was 6 and is 7"
    assert fingerprint(propose.record | {"version": "0"}) != propose.fingerprint


def test_the_record_is_that_of_the_command_line(propose: Propose, tiny_checkpoint: Path) -> None:
    generator = make_generator(load_model(tiny_checkpoint), SearchOptions(), EngineOptions(), top_n=6, refine=True)
    assert settings_of(generator, tiny_checkpoint) == propose.record


def test_batches_that_are_none(propose: Propose) -> None:
    for batch, told in (
        (["a.jpg"], "batch must be columns by name, such as a dict of lists, got list"),
        ({"path": "a.jpg"}, r"batch: path must be a list or an array, a value a photo, got 'a\.jpg'"),
        ({"path": ["a.jpg", "b.jpg"], "id": ["a"]}, "batch must have columns of one length, got id 1, path 2"),
    ):
        with pytest.raises(DataError, match=told):
            propose(batch)
    for content in ("text", 5):
        (error,) = propose({"bytes": [content]}).column("error").to_pylist()
        assert error == f"a photo must be a path, a URL or bytes, got {content!r}"


def test_what_is_no_fault_of_a_photo_is_an_exception(
    tiny_checkpoint: Path, tmp_path: Path, propose: Propose, monkeypatch: Patch
) -> None:
    with pytest.raises(DataError, match="batch must have a column path or bytes, got image"):
        propose({"image": []})
    with pytest.raises(DataError, match="precision must be"):
        Propose(tiny_checkpoint, precision="int8")
    for content in (b"", b"\x10\0\0\0\0\0\0\0{}"):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(DataError, match="must be a checkpoint of sharpmask"):
            Propose(tmp_path / "bad")
    with pytest.raises(DataError, match=r"checkpoint: .*none cannot be read: No such file"):
        Propose(tmp_path / "none")
    shutil.copy(tiny_checkpoint, tmp_path / "copy")
    stale = Propose(tmp_path / "copy", top_n=6)
    with open(tmp_path / "copy", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\0")
    with pytest.raises(DataError, match="must be as it was when Propose was made"):
        stale({"path": ["x"]})
    monkeypatch.setattr(packages, "find_spec", lambda _: None)
    with pytest.raises(DataError, match=r"needs the package pyarrow, .* pip install 'sharpmask\[batch\]'"):
        propose({"path": ["x"]})


def test_the_loop_of_one_machine(photos: Path, propose: Propose, table: Any, tmp_path: Path) -> None:
    given: list[Any] = [photos / "000007.png", str(photos / "b.png"), {"id": "c", "path": photos / "c.png"}]
    paths = write_rows(given, propose, tmp_path / "rows", rows_per_file=2)
    assert paths == sorted((tmp_path / "rows").iterdir()) and len(paths) == 2
    written = pa.concat_tables([pq.read_table(path) for path in paths])
    assert written.schema.equals(propose.schema(), check_metadata=True)
    assert written.drop_columns(["seconds", "id"]).equals(table.drop_columns(["seconds", "id"]))
    assert written["id"].to_pylist() == [*table["id"].to_pylist()[:2], "c"]
