"""Files that are there whole or not at all."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sharpmask.files import atomic, write_text


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
