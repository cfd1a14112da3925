"""Photos given on stdin and by patterns, results on stdout, and what is printed."""

import io
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from sharpmask.cli import main
from sharpmask.cli.images import expanded
from sharpmask.data.images import load_image
from sharpmask.errors import DataError


class Input:
    """Stdin of some bytes."""

    def __init__(self, content: bytes) -> None:
        self.buffer = io.BytesIO(content)


@pytest.fixture
def folder(tmp_path: Path, synth: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "a" / "b").mkdir(parents=True)
    picture = Image.fromarray(load_image(synth / "images" / "000001.png"))
    for name in ("a/1.png", "a/2.png", "a/b/3.png", "a/[4].png"):
        picture.save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_patterns_and_stdin(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def names(*given: str) -> list[str]:
        return [path.as_posix() for path in expanded([Path(name) for name in given])]

    assert names("a/?.png", "x.png") == ["a/1.png", "a/2.png", "x.png"]
    assert names("a/**/*.png") == ["a/1.png", "a/2.png", "a/[4].png", "a/b/3.png"]
    assert names("a/[4].png") == ["a/[4].png"], "what is there is no pattern"
    monkeypatch.setattr(sys, "stdin", Input(b"a/1.png\r\n\na/b/3.png\nwith space.png"))
    assert names("y.png", "-") == ["y.png", "a/1.png", "a/b/3.png", "with space.png"]
    monkeypatch.setattr(sys, "stdin", Input(b"\n"))
    with pytest.raises(DataError, match="images: - must be given paths on stdin, one a line, got none"):
        expanded([Path("-")])
    with pytest.raises(DataError, match=r"images: no file or folder matches z\*\.png"):
        expanded([Path("z*.png")])


def test_photos_on_stdin_are_searched_quietly(
    folder: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", Input(b"a/1.png\na/b/3.png\n"))
    common = ["--checkpoint", str(tiny_checkpoint), "--top-n", "5", "--no-overlay"]
    assert main(["propose", "-", "--out", "out", "--quiet", "--device", "auto", *common]) == 0
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "")
    assert {entry["image_id"] for entry in json.loads(Path("out/proposals.json").read_text())} == {1, 3}
    # The same results, of one photo, on stdout.
    assert main(["propose", "a/b/3.png", "--json", *common]) == 0
    alone = json.loads(capsys.readouterr().out)
    together = json.loads(Path("out/proposals.json").read_text())
    assert alone == [entry for entry in together if entry["image_id"] == 3]
    assert sorted(path.name for path in folder.iterdir()) == ["a", "out"]
    for more, said in (
        (["a/1.png", "a/2.png"], "json must have one photo, got 2"),
        (["a/1.png", "--resume"], "json: it writes no file, so leave out --out, --resume and --format, or --json"),
        (["a/1.png", "--out", "found"], "json: it writes no file, so leave out --out"),
    ):
        assert main(["propose", *more, "--json", *common]) == 2
        assert said in capsys.readouterr().err
