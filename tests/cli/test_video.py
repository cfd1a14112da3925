"""Videos are searched frame by frame; broken and hostile ones give one line."""

from __future__ import annotations

import csv
import json
import struct
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from sharpmask.cli import main
from sharpmask.data import video
from sharpmask.errors import DataError

Capture = pytest.CaptureFixture[str]
WIDTH, HEIGHT, RATE = 96, 64, 30
IDENTITY = struct.pack(">5i", 0x10000, 0, 0, 0, 0x10000)
CLOCKWISE = struct.pack(">9i", 0, 0x10000, 0, -0x10000, 0, 0, HEIGHT << 16, 0, 0x40000000)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """25 frames, red on the left, grey on the right: frame n has the grey 10 n."""
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE, options={"qscale": "1"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(25):
            pixels = np.full((HEIGHT, WIDTH, 3), 10 * number, np.uint8)
            pixels[:, : WIDTH // 2] = 255, 0, 0
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def propose(*arguments: object) -> int:
    return main(["propose", *map(str, arguments), "--scales", "0.5", "--top-n", "2", "--no-overlay"])


def test_frames(clip: Path) -> None:
    found = list(video.frames(clip, every=10))
    assert [frame.number for frame in found] == [0, 10, 20]
    assert [frame.seconds for frame in found] == pytest.approx([0, 10 / RATE, 20 / RATE])
    for frame in found:
        assert frame.pixels.shape == (HEIGHT, WIDTH, 3)
        assert np.abs(frame.pixels[:, 60:].astype(int) - 10 * frame.number).max() < 16
        assert frame.pixels[5, 5, 0] > 200 > frame.pixels[5, 5, 1]


def test_frames_are_turned_as_players_do(clip: Path, tmp_path: Path) -> None:
    content = clip.read_bytes()
    at = content.index(IDENTITY, content.index(b"tkhd"))
    (tmp_path / "a.mp4").write_bytes(content[:at] + CLOCKWISE + content[at + len(CLOCKWISE) :])
    pixels = next(video.frames(tmp_path / "a.mp4")).pixels
    assert pixels.shape == (WIDTH, HEIGHT, 3)
    assert pixels[5, 5, 0] > 200 > pixels[-5, 5, 0]  # what was left is above


def test_propose(clip: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    assert propose(clip, "--every", 10, "--out", out, "--checkpoint", tiny_checkpoint) == 0
    entries = json.loads((out / "proposals.json").read_text())
    assert {(entry["image_id"], entry["file_name"]) for entry in entries} == {
        (number, f"clip/{number:06d}.png") for number in (0, 10, 20)
    }
    with (out / "frames" / "clip" / "frames.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["frame"], row["seconds"]) for row in rows] == [("0", "0.000"), ("10", "0.333"), ("20", "0.667")]
    frame = np.asarray(Image.open(out / "frames" / "clip" / rows[1]["file"]))
    assert (frame == list(video.frames(clip, every=10))[1].pixels).all()
    before = {path: path.stat().st_mtime_ns for path in out.glob("*-*.json")}
    capsys.readouterr()
    assert propose(clip, "--every", 10, "--out", out, "--checkpoint", tiny_checkpoint, "--resume") == 0
    assert "3 of 3 photos have results" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in out.glob("*-*.json")} == before


def test_a_damaged_video_gives_its_first_frames(
    clip: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(video, "MAX_FRAMES", 2)  # an error in the middle, as damage is
    out = tmp_path / "out"
    assert propose(clip, "--every", 5, "--out", out, "--checkpoint", tiny_checkpoint) == 1
    assert "must give at most 2 frames, got more; a larger --every gives fewer" in capsys.readouterr().err
    assert {entry["image_id"] for entry in json.loads((out / "proposals.json").read_text())} == {0, 5}


@pytest.mark.parametrize("kind", ["empty", "text", "half", "playlist", "large", "folder"])
def test_what_is_no_video_is_one_line(
    kind: str, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    path = tmp_path / "bad.mp4"
    content = clip.read_bytes()
    playlist = f"#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:1,\n{clip}\n#EXT-X-ENDLIST\n".encode()
    contents = {"empty": b"", "text": b"abc" * 99, "half": content[: len(content) // 2], "playlist": playlist}
    path.write_bytes(contents.get(kind, content))
    if kind == "large":
        monkeypatch.setattr(video, "MAX_PIXELS", WIDTH * HEIGHT - 1)
    if kind == "folder":
        path.unlink()
        path.mkdir()
        with pytest.raises(DataError, match="must be a video file, got a folder"):
            next(video.frames(path))
        return
    assert propose(path, "--out", tmp_path / "out") == 1
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.splitlines()) == 1
    told = f"must have at most {WIDTH * HEIGHT - 1} pixels" if kind == "large" else "cannot be read as a video: "
    assert said.err.startswith(f"sharpmask: {path}: {told}")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_searched_is_refused(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    other = tmp_path / "clip.MOV"
    other.write_bytes(clip.read_bytes())
    assert propose(clip, other, "--out", tmp_path / "out") == 2
    assert "would share a folder" in capsys.readouterr().err
    assert propose(clip, "--json") == 2
    assert "json must have one photo, got the video" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "av", None)
    assert propose(clip) == 2
    assert capsys.readouterr().err == (
        "sharpmask: propose of videos needs the package av, which is not installed: pip install 'sharpmask[video]'\n"
    )
