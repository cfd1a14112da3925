"""Which files are replaced: those of the kind that a command writes, others with ``--overwrite``."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sharpmask.batch import schema
from sharpmask.batch.writing import write_table
from sharpmask.cli import main
from sharpmask.cli.options import Convert, ConvertDataset, Pack, Results
from sharpmask.cli.replacing import check_replaced
from sharpmask.errors import DataError

Capture = pytest.CaptureFixture[str]
WRITERS = {
    "checkpoint": "a checkpoint of this package",
    "instances": "a COCO instances file that convert-dataset wrote",
    "results": "a file of COCO results",
    "rows": "a file of rows",
}


def files(folder: Path, checkpoint: Path) -> dict[str, Path]:
    """A file of each kind."""
    paths = {kind: folder / kind for kind in WRITERS}
    paths["checkpoint"].write_bytes(checkpoint.read_bytes())
    paths["instances"].write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
    paths["results"].write_text('[\n{"image_id": 1, "score": 0.5}\n]\n')
    write_table(schema().empty_table(), paths["rows"])
    return paths


def test_a_file_of_the_kind_is_replaced_and_no_other(tiny_checkpoint: Path, tmp_path: Path) -> None:
    paths = files(tmp_path, tiny_checkpoint)
    others = {
        "notes.txt": b"notes",
        "short": b"P",
        "footer": b"\xff\xff\xff\xffPAR1",
        "header": b"\xff" * 8 + b"{",
        "list.json": b"[1, 2]",
        "labels.json": b'{"info": {"year": 2020}, "images": []}',
    }
    for name, content in others.items():
        paths[name] = tmp_path / name
        paths[name].write_bytes(content)
    for kind, told in WRITERS.items():
        for name, path in paths.items():
            check_replaced(path, kind, True)  # type: ignore[arg-type]
            if name == kind:
                check_replaced(path, kind, False)  # type: ignore[arg-type]
                continue
            with pytest.raises(DataError, match=f"out: {path} is there already and is not {told}; give another file"):
                check_replaced(path, kind, False)  # type: ignore[arg-type]


def test_no_file_and_an_empty_one_are_replaced_and_a_device_never(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    for kind in WRITERS:
        check_replaced(tmp_path / "none", kind, False)  # type: ignore[arg-type]
        check_replaced(tmp_path / "empty", kind, False)  # type: ignore[arg-type]
        for path in (tmp_path / "pipe", Path("/dev/null")):
            with pytest.raises(DataError, match="must be a regular file"):
                check_replaced(path, kind, True)  # type: ignore[arg-type]
    (tmp_path / "results").write_text("[]\n")
    check_replaced(tmp_path / "results", "results", False)


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (["pack", "file", "notes"], "checkpoint"),
        (["convert", "file", "notes"], "checkpoint"),
        (["convert-dataset", ".", "--out", "notes"], "instances"),
        (["results", "file", "--to", "coco", "--out", "notes"], "results"),
        (["results", "file", "--to", "parquet", "--out", "notes"], "rows"),
    ],
    ids=str,
)
def test_the_commands_ask_before_they_read(
    arguments: list[str], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("file", "notes"):
        (tmp_path / name).write_text("notes")
    assert main(arguments) == 2
    told = f"out: notes is there already and is not {WRITERS[kind]}; give another file, or --overwrite"
    assert capsys.readouterr().err == f"sharpmask: {told}\n"
    assert main([*arguments, "--overwrite"]) == 2  # what is read is no good
    assert "notes is there" not in capsys.readouterr().err and (tmp_path / "notes").read_text() == "notes"


def test_the_options_say_what_they_write() -> None:
    assert {kind.writes for kind in (Pack, Convert)} == {"checkpoint"} and ConvertDataset.writes == "instances"
    made = [Results((Path("x"),), to=to, out=Path("y")) for to in ("coco", "parquet", "labelme", "yolo")]
    assert [options.writes for options in made] == ["results", "rows", None, None]
