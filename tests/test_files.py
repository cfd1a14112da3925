"""Files that are there whole or not at all."""

import errno
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sharpmask import files
from sharpmask.errors import DataError
from sharpmask.files import LOCK, atomic, output_folder, short_name, write_text


def test_a_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.bin"
    with atomic(path) as part:
        part.write_bytes(b"content")
        assert not path.exists()
        assert part.parent == path.parent, "another file system would not rename in one step"
    assert path.read_bytes() == b"content"
    assert list(path.parent.iterdir()) == [path]


def test_an_error_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyError), atomic(path) as part:
        part.write_text("half of the n")
        raise KeyError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_text_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "über\n")
    assert path.read_bytes() == "über\n".encode()
    write_text(path, (f"{i}\n" for i in range(3)))
    assert path.read_text() == "0\n1\n2\n"

    def pieces() -> Iterator[str]:
        yield "begun"
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_text(path, pieces())
    assert path.read_text() == "0\n1\n2\n"
    assert list(tmp_path.iterdir()) == [path]


def test_two_processes_do_not_share_a_part(tmp_path: Path) -> None:
    with atomic(tmp_path / "file") as part:
        assert str(os.getpid()) in part.name
        part.touch()


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "x" * 251 + ".png"])
def test_the_longest_names_can_be_written(name: str, tmp_path: Path) -> None:
    write_text(tmp_path / name, "text")
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["x" * 256, "é" * 128 + ".json", "x" * 300 + ".png", "x." + "y" * 300, "\udcff" * 300])
def test_a_name_too_long_is_shortened_and_stays_its_own(name: str, tmp_path: Path) -> None:
    assert len(os.fsencode(short_name(name, spare=9))) <= 246
    assert short_name(name) == short_name(name) != short_name("z" + name[1:])
    assert short_name(name[:20]) == name[:20]
    write_text(tmp_path / short_name(name), "text")
    suffix = Path(name).suffix
    assert short_name(name).endswith(suffix) == (len(suffix) <= 16)


def test_an_error_of_writing_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    with pytest.raises(OSError, match=r"No space left on device: '.*/file\.json'") as caught, atomic(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.errno == errno.ENOSPC
    path.mkdir()
    with pytest.raises(IsADirectoryError, match=r"directory: '.*/file\.json'"):
        write_text(path, "text")
    with pytest.raises(OSError, match=re.escape(f"'{path / 'x'}'")), atomic(tmp_path / "other"):
        (path / "x").read_bytes()
    (tmp_path / "plain").touch()
    with pytest.raises(OSError, match="plain"):
        write_text(tmp_path / "plain" / "file", "text")


# One run at a time.

CHILD = """
import os, sys, time
from pathlib import Path
from sharpmask.files import atomic, output_folder
with output_folder(Path(sys.argv[1]), "inner"), atomic(Path(sys.argv[1], "inner", "half")) as part:
    part.write_text("half of it")
    if os.fork() == 0:  # as a loader of batches, which may live longer than its parent
        print("ready", flush=True)  # it has let go of the lock
        time.sleep(60)
        os._exit(0)
    time.sleep(60)
"""


def test_a_second_run_is_refused_and_a_killed_one_leaves_nothing(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        with pytest.raises(DataError, match=rf"out: {tmp_path} is in use .*process {child.pid} on \S+\)"):
            output_folder(tmp_path).__enter__()
        part = tmp_path / "inner" / f".half.{child.pid}.part"
        assert part.exists(), "a living run's file is left alone"
        child.kill()
        child.wait()
        with output_folder(tmp_path, "inner"):
            assert not part.exists()
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    assert [p.name for p in tmp_path.iterdir()] == ["inner"]


def test_leftovers_are_only_those_of_the_dead(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = {dead.pid: False, os.getpid(): False, os.getppid(): True}
    for pid in names:
        (tmp_path / f".x.json.{pid}.part").touch()
    others = {"x.part", ".x.part", f"x.{dead.pid}.part"}
    for name in others:
        (tmp_path / name).touch()
    with atomic(tmp_path / "own") as part:
        part.touch()
        with output_folder(tmp_path):
            assert part.exists(), "another thread is writing it"
    assert {p.name for p in tmp_path.iterdir()} == {*others, "own", f".x.json.{os.getppid()}.part"}


def test_leftovers_of_one_file(tmp_path: Path) -> None:
    for name in (".a[1].json.99999999.part", ".a1.json.99999999.part", ".b.json.99999999.part"):
        (tmp_path / name).touch()
    files.remove_leftovers(tmp_path, "a[1].json")
    assert {p.name for p in tmp_path.iterdir()} == {".a1.json.99999999.part", ".b.json.99999999.part"}
    files.remove_leftovers(tmp_path / "nowhere", "x")


def test_a_folder_made_for_nothing_goes(tmp_path: Path) -> None:
    with pytest.raises(KeyError), output_folder(tmp_path / "new"):
        raise KeyError
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    with output_folder(tmp_path / "old"):
        pass
    assert (tmp_path / "old").is_dir()


def test_a_folder_is_free_again_after_the_block(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    folder.mkdir(parents=True)
    with output_folder(folder), pytest.raises(DataError, match="in use by another run"):
        output_folder(folder).__enter__()
    with output_folder(folder):
        assert (folder / LOCK).is_file()
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "inner"):
        with pytest.raises(DataError, match=rf"out: {folder} must be a folder to write to: (File exists|Not a dir)"):
            output_folder(folder).__enter__()


def test_a_file_system_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def flock(*_: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", flock)
    with caplog.at_level(logging.WARNING), output_folder(tmp_path):
        pass
    assert caplog.messages == [f"{tmp_path}: cannot be locked (No locks available), so nothing keeps a second run out"]
