"""What the page's server answers: masks as the generator and the predictor give them, and one line for what is bad."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from sharpmask import MaskPredictor, ProposalGenerator
from sharpmask.app import server
from sharpmask.app.address import listen
from sharpmask.app.photos import MOST_OPEN, VIEW_SIDE, OpenPhoto
from sharpmask.cli import main
from sharpmask.data.images import load_image
from sharpmask.errors import DataError
from sharpmask.models import SharpMask
from tests.app.serving import ask, served


@pytest.fixture(scope="module")
def generator(tiny_sharpmask: SharpMask) -> ProposalGenerator:
    return ProposalGenerator(tiny_sharpmask, top_n=10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("open")


@pytest.fixture(scope="module")
def url(generator: ProposalGenerator, folder: Path) -> Iterator[str]:
    with served(generator, folder) as url:
        yield url


@pytest.fixture(scope="module")
def path(synth: Path) -> Path:
    return synth / "images" / "000002.png"


def opened(url: str, content: bytes, name: str = "cup.png") -> dict[str, Any]:
    status, answer = ask(url, f"/photos?name={name}", content)
    assert status == 200, answer
    return dict(json.loads(answer))


def error(answer: tuple[int, bytes], status: int = 422) -> str:
    assert answer[0] == status, answer
    line = json.loads(answer[1])["error"]
    assert "\n" not in line
    return str(line)


@pytest.fixture(scope="module")
def photo(url: str, path: Path) -> dict[str, Any]:
    return opened(url, path.read_bytes())


def decoded(mask: dict[str, Any]) -> np.ndarray:
    return np.asarray(coco_mask.decode(mask["rle"]), dtype=bool)


def test_the_proposals_are_the_generators(photo: dict[str, Any], generator: ProposalGenerator, path: Path) -> None:
    found = generator.generate(path)
    assert photo["size"] == photo["view"] == {"width": 160, "height": 120} and photo["name"] == "cup.png"
    assert [mask["id"] for mask in photo["masks"]] == [*range(len(found))]
    assert np.allclose([mask["score"] for mask in photo["masks"]], found.scores)
    for mask, expected, area in zip(photo["masks"], found.iter_masks(), found.areas, strict=True):
        assert (decoded(mask) == expected).all() and mask["area"] == area


def test_the_view_is_the_photo(url: str, photo: dict[str, Any], path: Path) -> None:
    status, content = ask(url, f"/photos/{photo['key']}/view")
    assert status == 200
    assert np.abs(load_image(content).astype(int) - load_image(path)).mean() < 10


@pytest.mark.parametrize(
    "asked",
    [
        {"points": [[80, 60]], "labels": [1], "box": None},
        {"points": [[80, 60], [20, 20]], "labels": [1, 0]},
        {"points": [], "labels": [], "box": [40, 30, 120, 100]},
        {"points": [[60, 50]], "labels": [0], "box": [40, 30, 120, 100]},
    ],
    ids=["click", "two clicks", "box", "box and click"],
)
def test_masks_for_clicks_are_the_predictors(
    url: str, photo: dict[str, Any], tiny_sharpmask: SharpMask, path: Path, asked: dict[str, Any]
) -> None:
    predictor = MaskPredictor(tiny_sharpmask)
    predictor.set_image(path)
    masks, scores, _ = predictor.predict(asked["points"] or None, asked["labels"] or None, boxes=asked.get("box"))
    filled = masks.any((1, 2))
    status, answer = ask(url, f"/photos/{photo['key']}/masks", asked)
    found = json.loads(answer)["masks"]
    assert status == 200 and np.allclose([mask["score"] for mask in found], scores[filled])
    assert (np.stack([decoded(mask) for mask in found]) == masks[filled]).all()


def test_downloads(url: str, photo: dict[str, Any], path: Path, folder: Path) -> None:
    """COCO results, pictures and cut-outs of chosen masks, in the order that was asked for, clicked ones too."""
    _, answer = ask(url, f"/photos/{photo['key']}/masks", {"points": [[80, 60]]})
    clicked = json.loads(answer)["masks"][0]
    chosen = [photo["masks"][1], clicked, photo["masks"][0]]
    masks, ids = [decoded(mask) for mask in chosen], {"masks": [mask["id"] for mask in chosen]}
    files = {kind: ask(url, f"/photos/{photo['key']}/{kind}", ids) for kind in ("coco", "png", "cutouts")}
    assert {status for status, _ in files.values()} == {200}

    entries = json.loads(files["coco"][1])
    assert [entry["score"] for entry in entries] == pytest.approx([mask["score"] for mask in chosen])
    assert {(entry["file_name"], entry["exif"]) for entry in entries} == {("cup.png", "turned")}
    for entry, mask in zip(entries, masks, strict=True):
        assert (coco_mask.decode(entry["segmentation"]).astype(bool) == mask).all()

    pictures = zipfile.ZipFile(io.BytesIO(files["png"][1]))
    assert sorted(pictures.namelist()) == ["index.png", "mask_00001.png", "mask_00002.png", "mask_00003.png"]
    for number, mask in enumerate(masks, 1):
        picture = Image.open(io.BytesIO(pictures.read(f"mask_{number:05d}.png")))
        assert (np.asarray(picture).astype(bool) == mask).all()

    cut = zipfile.ZipFile(io.BytesIO(files["cutouts"][1]))
    assert sorted(cut.namelist()) == ["cutout_00001.png", "cutout_00002.png", "cutout_00003.png"]
    for number, mask in enumerate(masks, 1):
        rows, columns = np.nonzero(mask)
        place = slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)
        pixels = np.asarray(Image.open(io.BytesIO(cut.read(f"cutout_{number:05d}.png"))))
        assert (pixels[..., 3].astype(bool) == mask[place]).all()
        assert (pixels[..., :3] == load_image(path)[place]).all()
    # What was written goes once it has been sent.
    deadline = time.monotonic() + 20
    while len([*(folder / photo["key"]).iterdir()]) > 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [file.name for file in (folder / photo["key"]).iterdir()] == ["photo"]


def test_a_large_photo_is_shown_smaller(generator: ProposalGenerator, path: Path, tmp_path: Path) -> None:
    """Its masks keep the photo's size."""
    Image.open(path).resize((2400, 1800)).save(tmp_path / "large.jpg")
    large = OpenPhoto(tmp_path / "large.jpg", "large.jpg", generator)
    assert large.view_size == (768, VIEW_SIDE)
    assert large.described()[0]["rle"]["size"] == [1800, 2400] and large.chosen([0]).size == (1800, 2400)


def bomb() -> bytes:
    """A few bytes that claim 30,000 x 30,000 pixels."""
    content = io.BytesIO()
    Image.new("L", (1, 1)).save(content, "BMP")
    data = bytearray(content.getvalue())
    data[18:26] = (30_000).to_bytes(4, "little") * 2
    return bytes(data)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", r"^bad\.png: a photo must have 1 to 1600000000 bytes, got 0$"),
        (b"no photo", r"^bad\.png: not an image of a known format"),
        (None, r"^bad\.png: cannot be read as an image"),
        (
            bomb(),
            r"^bad\.png: (must have at most 200000000 pixels, got 30000x30000|too many pixels to be opened)",
        ),
    ],
    ids=["empty", "text", "cut off", "huge"],
)
def test_a_bad_photo_is_refused(
    url: str, photo: dict[str, Any], path: Path, folder: Path, content: bytes | None, words: str
) -> None:
    before = sorted(folder.iterdir())
    if content is None:
        content = path.read_bytes()[:2000]
    assert re.search(words, error(ask(url, "/photos?name=C%3A/x/bad.png", content)))
    assert sorted(folder.iterdir()) == before, "nothing stays"
    assert ask(url, f"/photos/{photo['key']}/masks", {"points": [[80, 60]]})[0] == 200, "the other goes on"


def test_a_file_that_is_too_large_is_refused(url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "LARGEST_FILE", 1000)
    before = sorted(folder.iterdir())
    assert error(ask(url, "/photos?name=a.png", b"x" * 3_000_000)) == (
        "a.png: a photo must have 1 to 1000 bytes, got 3000000"
    )
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("door", "asked", "words"),
    [
        ("masks", {"points": [[200, 60]]}, r"points\[0\] must lie on the photo of 160x120 pixels, got \(200.0, 60.0\)"),
        ("masks", {"points": "here"}, "points must be a list of"),
        ("masks", {"points": [[float("nan"), 1]]}, r"points\[0\] must be 2 finite numbers"),
        ("masks", {"points": [[1, 1]], "labels": [0]}, "labels must hold a 1"),
        ("masks", {"box": [10, 10, 10, 20]}, r"box\[0\] must be corners"),
        ("masks", {}, "points must hold a click, or boxes a box, got neither"),
        ("masks", b"no JSON", "a request must be a JSON object"),
        ("masks", b"[" * 100_000, "a request must be a JSON object"),
        ("masks", b"[1]", "a request must be a JSON object"),
        ("masks", b" " * 2_000_000, "a request must have at most 1048576 bytes"),
        ("coco", {"masks": []}, "masks must be a list of numbers from 0 to"),
        ("coco", {"masks": [-1]}, "masks must be a list of numbers from 0 to"),
        ("png", {"masks": [True]}, "masks must be a list of numbers from 0 to"),
        ("cutouts", {"masks": [100_000]}, "masks must be a list of numbers from 0 to"),
    ],
)
def test_a_bad_question_is_refused(
    url: str, photo: dict[str, Any], door: str, asked: bytes | dict[str, Any], words: str
) -> None:
    assert re.match(words, error(ask(url, f"/photos/{photo['key']}/{door}", asked)))


def test_what_fails_is_told(url: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("no memory\nfor that")

    with monkeypatch.context() as patch:
        patch.setattr("sharpmask.app.photos.OpenPhoto.__init__", fail)
        assert error(ask(url, "/photos", path.read_bytes()), 500) == "this failed: no memory for that"
    opened(url, path.read_bytes())


def test_the_oldest_photo_is_closed(url: str, path: Path, folder: Path) -> None:
    first = opened(url, path.read_bytes())
    for _ in range(MOST_OPEN):
        opened(url, path.read_bytes())
    assert "no longer open" in error(ask(url, f"/photos/{first['key']}/masks", {"points": [[1, 1]]}))
    assert len([*folder.iterdir()]) == MOST_OPEN


@pytest.mark.parametrize(
    "headers",
    [{"Host": "evil.example"}, {"Host": "evil.example:80"}, {"Origin": "http://evil.example"}, {"Origin": "null"}],
    ids=str,
)
def test_other_sites_cannot_ask(url: str, path: Path, headers: dict[str, str]) -> None:
    assert error(ask(url, "/photos", path.read_bytes(), headers), 403) == "only the page itself may ask"
    assert ask(url, "/", headers=headers)[0] == 403


def test_files_outside_of_the_page_are_not_served(url: str) -> None:
    for path in ("/../server.py", "/%2e%2e/server.py", "/..%2fserver.py", "/photos/../../server.py"):
        assert ask(url, path)[0] in (404, 405)


def test_a_port_in_use_and_one_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["app", "--port", str(port)]) == 2
    line = f"sharpmask: port must be one that is free, got {port} (Address already in use); --port 0 takes any\n"
    assert capsys.readouterr().err == line
    assert main(["app", "--port", "65536"]) == 2
    assert "port must be a whole number from 0 to 65535, got 65536" in capsys.readouterr().err


def test_without_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sharpmask.packages.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"app needs the package starlette, .*: pip install 'sharpmask\[app\]'"):
        listen(0)


def test_the_command(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """It serves at an address of this computer alone, and Ctrl-C ends it and leaves nothing."""
    command = [sys.executable, "-m", "sharpmask.cli", "app", "--no-browser", "--port", "0", "--checkpoint"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    program = subprocess.Popen([*command, str(tiny_checkpoint)], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert program.stdout is not None
        line = program.stdout.readline()
        found = re.match(r"(http://127\.0\.0\.1:\d+/): open this in a browser", line)
        assert found, line
        with urlopen(found[1]) as page:
            assert b"<title>SharpMask</title>" in page.read()
        program.send_signal(signal.SIGINT)
        assert program.wait(20) == 0
    finally:
        program.kill()
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_photos_go_when_the_program_is_ended(name: str, tmp_path: Path) -> None:
    program = (
        "from sharpmask.app.address import listen\nfrom sharpmask.app.server import serve\n"
        "listening = listen(0)\nprint('ready', flush=True)\nserve(None, listening)"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        while not (folders := list(tmp_path.glob("sharpmask-app-*"))):
            time.sleep(0.01)
        (folders[0] / "photo").write_text("a photo")
        time.sleep(0.5)  # until it serves
        process.send_signal(getattr(signal, name))
    assert not folders[0].exists()
