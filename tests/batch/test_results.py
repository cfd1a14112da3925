"""Rows turned into other formats: what is written, what is filtered, what is refused."""

import json
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sharpmask import DataError, ProposalGenerator, load_model
from sharpmask.batch import PARQUET, Propose, footers, reading, schema
from sharpmask.batch.results import Wanted, selected
from sharpmask.batch.survey import Survey
from sharpmask.batch.writing import write_table
from sharpmask.cli import main
from sharpmask.ranges import shown

from .conftest import changed

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def rows(table: Any, tmp_path: Path) -> Path:
    """A folder of two files of rows."""
    write_table(table[:2], tmp_path / "rows" / "a.parquet")
    write_table(table[2:], tmp_path / "rows" / "more" / "b.parquet")
    for name in (".c.parquet.1.part", "_run/d.parquet", ".e.parquet"):
        (tmp_path / "rows" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "rows" / name).write_bytes(b"PAR1")
    return tmp_path / "rows"


def results(*arguments: object) -> int:
    return main(["results", *map(str, arguments)])


def refused(capsys: Capture, *arguments: object) -> str:
    """The line that says why."""
    assert results(*arguments) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and line.startswith("sharpmask: ")
    return line


def test_counts(rows: Path, table: Any, propose: Propose, capsys: Capture) -> None:
    assert results(rows) == 0
    found = sum(len(row["proposals"] or ()) for row in table.to_pylist())
    assert capsys.readouterr().out.splitlines() == [
        f"3 rows, 1 of them failed, {found} proposals",
        f"failed: 1 {table['error'][2].as_py().partition(': ')[2]}",
        f"fingerprint {propose.fingerprint}: 3 rows",
    ]


def test_one_is_told_in_the_singular(rows: Path, table: Any, tmp_path: Path, capsys: Capture) -> None:
    one = changed(table[:1], 0, proposals=table["proposals"][0].as_py()[:1])
    write_table(one, tmp_path / "one" / "a.parquet")
    write_table(one, tmp_path / "one" / "b.parquet")
    assert results(tmp_path / "one" / "a.parquet") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "1 row, 0 of them failed, 1 proposal" and said[1].endswith(": 1 row")
    assert results(tmp_path / "one", "--to", "coco", "--out", tmp_path / "x.json") == 0
    told = capsys.readouterr()
    assert told.out == f"{tmp_path}/x.json: 1 photo, 1 proposal\n"
    assert "1 row is left out, as its id stands in another: first " in told.err
    assert results(rows, "--to", "coco", "--out", tmp_path / "x.json", "--photos", table["path"][2].as_py()) == 0
    assert "1 of 1 photo had failed" in capsys.readouterr().err


def test_coco_is_what_propose_writes(
    rows: Path, photos: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: Capture
) -> None:
    given = [str(photos / name) for name in ("000007.png", "b.png")]
    wanted = ["--checkpoint", str(tiny_checkpoint), "--out", str(tmp_path / "out"), "--top-n", "6", "--no-overlay"]
    assert main(["propose", *given, *wanted]) == 0
    assert results(rows, "--to", "coco", "--out", tmp_path / "coco.json") == 0
    assert "1 of 3 photos had failed" in capsys.readouterr().err
    entries = json.loads((tmp_path / "coco.json").read_text())
    expected = json.loads((tmp_path / "out" / "proposals.json").read_text())
    assert len(entries) == len(expected) > 6
    for entry, other in zip(entries, expected, strict=True):
        same = entry.keys() - {"file_name", "image_id", "score"}
        assert {key: entry[key] for key in same} == {key: other[key] for key in same}
        # Two photos at once have half of the threads each, and sums of other parts.
        assert entry["score"] == pytest.approx(other["score"], rel=1e-5)
        assert entry["exif"] == "turned" and entry["file_name"].endswith(other["file_name"])
    assert entries[0]["image_id"] == expected[0]["image_id"] == 7
    assert 1 << 52 <= entries[-1]["image_id"] < 1 << 53


def test_labelme_and_yolo_are_those_of_the_proposals(
    rows: Path, photos: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    for kind in ("labelme", "yolo"):
        assert results(rows, "--to", kind, "--out", tmp_path / kind) == 0
    found = ProposalGenerator(load_model(tiny_checkpoint), top_n=6).generate(photos / "b.png")
    document = json.loads((tmp_path / "labelme" / "b.json").read_text())
    assert (tmp_path / "labelme" / document["imagePath"]).samefile(photos / "b.png")
    assert document == json.loads(json.dumps(found.to_labelme(document["imagePath"])))
    assert (tmp_path / "yolo" / "labels" / "b.txt").read_text() == found.to_yolo()
    assert sorted(path.name for kind in ("labelme", "yolo") for path in (tmp_path / kind).rglob("*.*")) == sorted(
        ["000007.json", "b.json", "000007.txt", "b.txt", "data.yaml"]
    )


def test_rows_are_filtered_and_merged(rows: Path, table: Any, propose: Propose, tmp_path: Path) -> None:
    out = tmp_path / "all.parquet"
    assert results(rows, "--to", "parquet", "--out", out) == 0
    merged = pq.read_table(out)
    assert merged.equals(table) and merged.schema.equals(propose.schema(), check_metadata=True)
    every = [row["proposals"] or [] for row in table.to_pylist()]
    score, area = np.median([p["score"] for p in every[0]]), np.median([p["area"] for p in every[1]])
    asked = ["--min-score", score, "--min-area", int(area), "--top", 2, "--photos", "*.png"]
    assert results(rows, "--to", "parquet", "--out", out, *asked) == 0
    expected = [[p for p in row if p["score"] >= np.float32(score) and p["area"] >= int(area)][:2] for row in every]
    assert [row["proposals"] or [] for row in pq.read_table(out).to_pylist()] == expected
    assert any(expected) and pq.read_table(out)["proposals"].null_count == 1
    assert results(rows, "--to", "parquet", "--out", out, "--photos", "*/b.*") == 0
    assert pq.read_table(out).equals(table[1:2])


def test_rows_of_one_id_count_once(rows: Path, table: Any, tmp_path: Path, capsys: Capture) -> None:
    failed = changed(table[:1], 0, error="a.png: gone", proposals=None, height=None, width=None)
    write_table(failed, rows / "0.parquet")
    write_table(table[1:2], rows / "z.parquet")
    assert results(rows, "--to", "parquet", "--out", tmp_path / "all.parquet") == 0
    assert "2 rows are left out, as their ids stand in others: first " in capsys.readouterr().err
    assert pq.read_table(tmp_path / "all.parquet").equals(table)
    assert results(rows) == 0
    assert "2 rows are left out" in capsys.readouterr().err


def test_a_pattern_that_no_row_matches_is_refused(rows: Path, table: Any, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "x.parquet"
    first = shown(table["path"][0].as_py())
    for wanted in ((), ("--to", "parquet", "--out", out)):
        line = refused(capsys, rows, *wanted, "--photos", "b.png")
        assert f"got 'b.png', which matches none of 3; the first path is {first}\n" in line
    assert not out.exists()
    write_table(changed(table[:1], 0, id="k1", path=None), tmp_path / "ids.parquet")
    line = refused(capsys, tmp_path / "ids.parquet", "--photos", "k2")
    assert "photos must match the whole id of a row" in line and line.endswith("the first id is 'k1'\n")
    assert results(tmp_path / "ids.parquet", "--photos", "k?") == 0


def test_merged_rows_are_not_written_where_they_would_be_read(
    rows: Path, table: Any, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "link").symlink_to(rows)
    for folder in (rows, f"file://{rows}"):
        for out in (rows / "all.parquet", tmp_path / "link" / "new" / "all.parquet", rows / "a.parquet"):
            line = refused(capsys, folder, "--to", "parquet", "--out", out)
            assert f"out: {out} would count as rows of " in line and "begins with _" in line
    assert sorted(path.name for path in rows.rglob("[!._]*.parquet")) == ["a.parquet", "b.parquet", "d.parquet"]
    for out in (rows / "_all.parquet", rows / "all.json", tmp_path / "all.parquet"):
        assert results(rows, "--to", "coco" if out.suffix == ".json" else "parquet", "--out", out) == 0
    assert results(rows) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(f": {len(table)} rows")


def test_mixed_settings_are_refused(rows: Path, photos: Path, tmp_path: Path, capsys: Capture) -> None:
    other = Propose("small", top_n=2)
    record = other.record | {"top_n": 5}
    told = other({"path": ["none.png"]}).replace_schema_metadata(schema({other.fingerprint: record}).metadata)
    write_table(told, rows / "other.parquet")
    out = tmp_path / "x.json"
    line = refused(capsys, rows, "--to", "coco", "--out", out)
    assert "rows must be of one fingerprint, got 2: " in line and "top_n was 6 and is 5" in line and "--mixed" in line
    assert not out.exists()
    assert results(rows, "--to", "coco", "--out", out, "--mixed") == 0
    assert results(rows) == 0
    assert "the first two differ: " in capsys.readouterr().out
    write_table(told.replace_schema_metadata(None), rows / "other.parquet")
    assert "of which the files do not have the settings" in refused(capsys, rows, "--to", "coco", "--out", out)


def test_photos_of_one_name_are_refused(rows: Path, table: Any, tmp_path: Path, capsys: Capture) -> None:
    write_table(changed(table[:1], 0, id="other", path="elsewhere/B.jpg"), rows / "z.parquet")
    line = refused(capsys, rows, "--to", "yolo", "--out", tmp_path / "yolo")
    assert "b.png and elsewhere/B.jpg would have one file; take them apart with --photos" in line
    assert results(rows, "--to", "yolo", "--out", tmp_path / "yolo", "--photos", "elsewhere*") == 0
    assert (tmp_path / "yolo" / "labels" / "B.txt").is_file()


def test_no_path_leads_out_of_the_folder(rows: Path, table: Any, tmp_path: Path) -> None:
    for number, path in enumerate(("../../x.jpg", "/x/..", "a/" + "b" * 300 + ".jpg")):
        write_table(changed(table[:1], 0, id=str(number), path=path), rows / f"{number}.parquet")
    before = {path for path in tmp_path.parent.rglob("*") if tmp_path / "out" not in path.parents}
    assert results(rows, "--to", "labelme", "--out", tmp_path / "out") == 0
    after = {path for path in tmp_path.parent.rglob("*") if tmp_path / "out" not in path.parents}
    assert after - before == {tmp_path / "out"} and len(list((tmp_path / "out").iterdir())) == 5


def test_rows_that_other_programs_wrote_again(table: Any, tmp_path: Path) -> None:
    """As pandas has them: wider numbers, missing ones as NaN, no metadata; large texts and lists; another order."""
    plain = pa.Table.from_pylist(table.to_pylist()[::-1])
    proposal = pa.struct(
        {"counts": pa.large_string(), "area": pa.int64(), "score": pa.float64(), "bbox": pa.large_list(pa.float64())}
    )
    wide = plain.set_column(
        plain.schema.get_field_index("proposals"),
        "proposals",
        pa.array(plain["proposals"].to_pylist(), pa.large_list(proposal)),
    )
    wide = wide.set_column(wide.schema.get_field_index("height"), "height", wide["height"].cast(pa.float64()))
    pq.write_table(wide, tmp_path / "wide.parquet")
    assert results(tmp_path / "wide.parquet", "--to", "parquet", "--out", tmp_path / "out.parquet") == 0
    assert pq.read_table(tmp_path / "out.parquet").equals(table[::-1].combine_chunks())


def bad(**columns: Any) -> dict[str, Any]:
    return columns


def bad_proposal(**columns: Any) -> dict[str, Any]:
    return {"proposal": columns}


BAD_ROWS = {
    "area must be its mask's": bad_proposal(area=3),
    "bbox must be four finite numbers": bad_proposal(bbox=[1.0, 2.0]),
    "bbox must be four finite": bad_proposal(bbox=[1.0, 2.0, 3.0, float("nan")]),
    "score must be a finite number": bad_proposal(score=float("nan")),
    "RLE": bad_proposal(counts="1"),
    "must have score, bbox, area and counts": bad_proposal(counts=None),
    "must have at most 200000000 pixels": bad(height=65_535, width=65_535),
    "must have at least one pixel": bad(height=None),
    "must have at least one pixel, got -5": bad(width=-5),
    "every row must have an id": bad(id=None),
}


@pytest.mark.parametrize("said", BAD_ROWS)
def test_bad_rows_are_named(said: str, table: Any, tmp_path: Path, capsys: Capture) -> None:
    columns = dict(BAD_ROWS[said])
    if "proposal" in columns:
        columns = {"proposals": [table["proposals"][1].as_py()[0] | columns.pop("proposal")]}
    write_table(changed(table, 1, **columns), tmp_path / "rows.parquet")
    line = refused(capsys, tmp_path / "rows.parquet", "--to", "coco", "--out", tmp_path / "x.json")
    assert said in line and f"{tmp_path}/rows.parquet: " in line
    assert said == "every row must have an id" or f"row {table['id'][1]}: " in line or "counts, got none" in line
    assert not (tmp_path / "x.json").exists()


def test_other_files_are_refused(table: Any, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.parquet"
    assert "rows: no file or folder" in refused(capsys, path)
    assert refused(capsys) == "sharpmask: rows must be Parquet files, folders of these, or URLs, got none\n"
    assert "must hold Parquet files of rows, got none" in refused(capsys, tmp_path)
    path.write_bytes(b"PAR1 and no more")
    assert "cannot be read as rows: " in refused(capsys, path)
    pq.write_table(pa.table({"id": ["a"], "score": [1.0]}), path)
    assert "must be rows of proposals (docs/results.md), but has no path, height, " in refused(capsys, path)
    pq.write_table(table.set_column(4, "proposals", [["a", "b", "c"]]), path)
    assert "has no proposals.score, proposals.area, proposals.counts" in refused(capsys, path)
    pq.write_table(table.replace_schema_metadata({"sharpmask.rows": "2"}), path)
    assert "must be rows of version 1, got '2'" in refused(capsys, path)
    pq.write_table(table.replace_schema_metadata({"sharpmask.settings": "[1]"}), path)
    assert "the settings in its metadata must be JSON by fingerprint" in refused(capsys, path)
    write_table(table, path)
    content = path.read_bytes()
    path.write_bytes(content[:100] + b"\xff" * 200 + content[300:])
    assert "cannot be read as rows" in refused(capsys, path, "--to", "parquet", "--out", tmp_path / "out")
    assert "to and out must be given together" in refused(capsys, path, "--to", "coco")


def test_damage_is_told_or_harmless(table: Any, tmp_path: Path) -> None:
    path, random = tmp_path / "rows.parquet", np.random.default_rng(3)
    pq.write_table(table, path)
    content = path.read_bytes()
    outcomes = set()
    for _ in range(80):
        damaged = bytearray(content)
        damaged[random.integers(len(content))] = random.integers(256)
        path.write_bytes(damaged)
        try:
            survey = Survey([reading.RowsFile(path)])
            outcomes.add(sum(map(len, selected(survey, Wanted()))) <= len(table))
        except DataError as error:
            assert str(path) in str(error) or "ids of photos" in str(error)
            outcomes.add("told")
    assert "told" in outcomes and False not in outcomes


def test_a_footer_that_ends_its_reader_is_told(table: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.parquet"
    write_table(table, path)
    footers._reader.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(footers.sys, "executable", "/bin/false")  # in the place of a reader that ends
        with pytest.raises(DataError, match=f"{path}: cannot be read as rows: its footer is damaged"):
            reading.RowsFile(path)
    assert len(list(reading.RowsFile(path).batches())) == 1


def test_small_files_that_would_take_much_memory(
    table: Any, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "SMALL", 1 << 16)
    monkeypatch.setattr(reading, "MOST_TEXT", 1 << 18)
    path = tmp_path / "rows.parquet"
    long = changed(table, 1, error="x" * (16 * reading.SMALL))
    write_table(long, path)
    assert "bytes of error in a row group must take" in refused(capsys, path)
    # A text that stands once in the file and in many rows.
    text = "".join(map(chr, np.random.default_rng(0).integers(32, 127, 1 << 13)))
    write_table(pa.concat_tables([changed(table[:1], 0, path=text, id=str(i)) for i in range(50)]), path)
    pq.write_table(pq.read_table(path), path, use_dictionary=True, dictionary_pagesize_limit=1 << 28)
    assert path.stat().st_size < 1 << 15
    assert "50 rows must have at most 262144 bytes of text, got " in refused(capsys, path)


def test_a_row_group_of_too_many_values(table: Any, tmp_path: Path, capsys: Capture, monkeypatch: Any) -> None:
    monkeypatch.setattr(reading, "MOST_VALUES", 20)
    write_table(table, tmp_path / "rows.parquet")
    assert "a row group must have at most 20 values of proposals.list.element.bbox" in refused(
        capsys, tmp_path / "rows.parquet"
    )


def test_rows_at_urls(rows: Path, table: Any, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only one file is here at a time, and none is left."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "copies"))
    (tmp_path / "copies").mkdir()
    fsspec.filesystem("memory").put(f"{rows}/", "memory://bucket/rows/", recursive=True)
    url = "memory://bucket/rows"
    assert reading.files_of([f"{url}/more/b.parquet", url]) == [f"{url}/{n}" for n in ("more/b.parquet", "a.parquet")]
    assert results(url) == 0
    there = capsys.readouterr().out
    assert results(f"file://{rows}") == 0 and results(rows) == 0
    assert capsys.readouterr().out == 2 * there and there.startswith("3 rows, 1 of them failed")
    assert results(url, "--to", "parquet", "--out", tmp_path / "all.parquet") == 0
    assert pq.read_table(tmp_path / "all.parquet").equals(table)
    with closing(reading.RowsFile(f"{url}/a.parquet").batches()) as batches:
        assert len(next(batches)) == 2
        (copy,) = (tmp_path / "copies").rglob("copy")
        assert copy.read_bytes() == (rows / "a.parquet").read_bytes()
    assert not list((tmp_path / "copies").iterdir())


def test_other_files_at_urls_are_refused(table: Any, tmp_path: Path, capsys: Capture) -> None:
    store, url = fsspec.filesystem("memory"), "memory://bad/a.parquet"
    assert "memory:/none: must hold Parquet files of rows, got none" in refused(capsys, "memory://none")
    assert "nosuch://a: cannot be read: " in refused(capsys, "nosuch://a")
    write_table(table, tmp_path / "a.parquet")
    content = (tmp_path / "a.parquet").read_bytes()
    for damaged in (b"", b"PAR1", content[:-100], content[:-8] + b"\xff" * 4 + content[-4:], content[100:]):
        store.pipe_file("/bad/a.parquet", damaged)
        line = refused(capsys, url, "--to", "parquet", "--out", tmp_path / "out.parquet")
        assert "memory://bad/a.parquet: cannot be read as rows: " in line
    assert not (tmp_path / "out.parquet").exists()


def test_empty_rows(tmp_path: Path, capsys: Capture) -> None:
    pq.write_table(schema().empty_table(), tmp_path / "rows.parquet", **PARQUET)
    assert results(tmp_path / "rows.parquet") == 0
    assert results(tmp_path / "rows.parquet", "--to", "coco", "--out", tmp_path / "x.json") == 0
    assert json.loads((tmp_path / "x.json").read_text()) == []
    assert results(tmp_path / "rows.parquet", "--to", "parquet", "--out", tmp_path / "y.parquet") == 0
    assert len(pq.read_table(tmp_path / "y.parquet")) == 0
