"""Runs that were stopped go on, and never from results of something else."""

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from sharpmask.checkpoint import load_model, save_model
from sharpmask.cli import main
from sharpmask.cli.parts import Parts, content_of, has_results
from sharpmask.cli.photo_ids import HASHED, numbered
from sharpmask.data.photos import FoundPhoto, find_photos
from sharpmask.files import output_folder
from sharpmask.search import ProposalGenerator
from sharpmask.version import __version__

Capture = pytest.CaptureFixture[str]


def run(*arguments: object) -> int:
    return main([str(a) for a in arguments])


def fails(capsys: Capture, *arguments: object) -> str:
    capsys.readouterr()
    assert run(*arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("sharpmask: ") and not any(line.startswith("Proposals") for line in lines)
    return lines[-1]


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def merged(folder: Path) -> list[dict[str, Any]]:
    return list(json.loads((folder / "proposals.json").read_text()))


# Names and numbers.


def found(*names: str) -> list[FoundPhoto]:
    """Photos given one by one."""
    return [FoundPhoto(Path(name), Path(name).name) for name in names]


def test_ids_are_a_photo_s_own() -> None:
    names = ["a/IMG.jpg", "b/IMG.jpg", "a/IMG.png", "a/img.jpg", "a/x y.jpg", "7.jpg", "c/0012.png"]
    ids = {photo.path.as_posix(): photo.id for photo in numbered(found(*names))}
    assert len(set(ids.values())) == len(names)
    assert ids["7.jpg"] == 7 and ids["c/0012.png"] == 12
    assert all(HASHED <= ids[name] < 2 * HASHED == 2**53 for name in names[:5])
    # Whatever else is in the run, and in whatever order.
    for some in (names[::-1], names[:1], names[2:5], [*names, "d/IMG.jpg", "5.jpg"]):
        for photo in numbered(found(*some)):
            assert ids.get(photo.path.as_posix(), photo.id) == photo.id


def test_a_photo_s_id_is_the_same_given_alone_or_in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("a/x.jpg", "a/b/x.jpg"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path / "a")
    given = {
        name: {p.path.resolve(): p.id for p in numbered(find_photos(paths, recursive=True).photos)}
        for name, paths in {
            "folder": [tmp_path / "a"],
            "here": [Path(".")],
            "above": [Path("../a")],
            "file": [tmp_path / "a" / "x.jpg"],
        }.items()
    }
    assert given["folder"] == given["here"] == given["above"] and len(set(given["folder"].values())) == 2
    assert given["file"].items() <= given["folder"].items()


STAY = {
    "a number": (["a/7.jpg"], ["a/7.jpg", "b/7.jpg", "c/07.png"]),
    "a folder's name": (["x/a/IMG.jpg"], ["w/a/IMG.jpg", "x/a/IMG.jpg", "y/a/IMG.jpg"]),
    "both": (["x/a/7.jpg"], ["w/a/7.jpg", "x/a/7.jpg", "y/a/7.jpg", "8.jpg"]),
}


@pytest.mark.parametrize("way", ["came", "went"])
@pytest.mark.parametrize("case", STAY)
def test_an_id_with_results_stays_whatever_else_comes_or_goes(case: str, way: str, tmp_path: Path) -> None:
    few, many = ([*map(str, map(tmp_path.joinpath, names))] for names in STAY[case])
    for name in many:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(name)
    earlier, later = (few, many) if way == "came" else (many, few)
    parts = Parts(tmp_path, {})
    before = {photo.path: photo for photo in numbered(found(*earlier))}
    for photo in before.values():
        parts.write(photo, content_of(photo.path), [])
    for order in (later, later[::-1]):
        after = numbered(found(*order), partial(has_results, tmp_path))
        assert len({photo.id for photo in after}) == len({photo.part for photo in after}) == len(after)
        assert all(before.get(photo.path, photo) == photo for photo in after)
        assert parts.finished(after) == [photo.path in before for photo in after]
    assert any(before.get(photo.path, photo) != photo for photo in numbered(found(*later))), "else they would shift"


@pytest.mark.parametrize(
    "names",
    [
        ("a/7.jpg", "b/7.jpg", "a/07.png"),
        ("x/a/IMG.jpg", "y/a/IMG.jpg", "IMG.jpg"),
        ("IMG.jpg", "IMG.png", "img.JPG", "IMG"),
        ("-1.jpg", "1.jpg", "1-1.jpg"),
        ("٧.jpg", "7.jpg", "²7.jpg"),
        (f"{HASHED}.jpg", f"{HASHED - 1}.jpg", "9" * 200 + ".jpg"),
        ("x" * 251 + ".jpg", "x" * 250 + "y.jpg", "é" * 125 + ".jpg"),
        (".jpg", "a.jpg", "a b.jpg", "a\nb.jpg", "\udcff.jpg"),
    ],
)
def test_no_two_photos_share_a_file(names: tuple[str, ...]) -> None:
    photos = numbered(found(*names))
    assert len({photo.id for photo in photos}) == len({photo.name for photo in photos}) == len(photos)
    assert len({photo.part.casefold() for photo in photos}) == len(photos), "as on file systems that fold case"
    assert all(len(os.fsencode(photo.part)) <= 255 and photo.part.endswith(".json") for photo in photos)


# The commands.


@pytest.fixture
def photos(synth: Path, tmp_path: Path) -> Path:
    """Two folders with two photos each, of the same names."""
    for number, name in enumerate(("a/IMG.png", "a/two.png", "b/IMG.png", "b/two.png"), 1):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((synth / "images" / f"00000{number}.png").read_bytes())
    return tmp_path / "photos"


def test_photos_of_equal_names_keep_their_own_results(photos: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    base = ("propose", "--checkpoint", tiny_checkpoint, "--top-n", 2, "--out")
    assert run(*base, tmp_path / "both", photos / "a", photos / "b") == 0
    entries = merged(tmp_path / "both")
    assert [e["file_name"] for e in entries[::2]] == ["a/IMG.png", "a/two.png", "b/IMG.png", "b/two.png"]
    assert len(list((tmp_path / "both").glob("*.png"))) == 4
    # One after the other, into the same folder.
    assert run(*base, tmp_path / "one", photos / "a" / "IMG.png") == 0
    assert run(*base, tmp_path / "one", photos / "b" / "IMG.png", photos / "a" / "IMG.png", "--resume") == 0
    again = {(e["file_name"], e["image_id"], json.dumps(e["segmentation"])) for e in merged(tmp_path / "one")}
    assert again == {
        (e["file_name"], e["image_id"], json.dumps(e["segmentation"])) for e in entries if "IMG" in e["file_name"]
    }


def test_propose_goes_on_where_it_stopped(photos: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    base = (
        "propose",
        photos,
        "--recursive",
        "--checkpoint",
        tiny_checkpoint,
        "--top-n",
        3,
        "--no-overlay",
        "--out",
        out,
    )
    assert run(*base) == 0
    whole = contents(out)
    parts = sorted(out.glob("*-*.json"))
    record = json.loads(parts[0].read_text())
    assert list(record) == ["sha256", "settings", "photo", "proposals"] and record["settings"]["top_n"] == 3
    record["proposals"] = record["proposals"][:1]
    parts[0].write_text(json.dumps(record))
    parts[1].unlink()
    parts[2].write_bytes(parts[2].read_bytes()[:-9])
    capsys.readouterr()
    assert run(*base, "--resume") == 0
    said = capsys.readouterr().err
    assert f"1 of 4 photos have results in {out}" in said
    assert all(f"{part}: damaged or edited" in said for part in (parts[0], parts[2]))
    assert contents(out) == whole
    # A score with another digit, in a file that is whole as JSON; the results of another photo.
    text = parts[3].read_text()
    parts[3].write_text(text.replace('"score": 0.', '"score": 0.0', 1))
    assert parts[3].read_text() != text and run(*base, "--resume") == 0
    assert contents(out) == whole
    parts[3].write_bytes(parts[0].read_bytes())
    assert " was photos/" in (said := fails(capsys, *base, "--resume")) and f"{parts[3]}: " in said


SETTINGS = {
    "top_n": (("--top-n", 4), "top_n was 3 and is 4"),
    "refine": (("--no-refine",), "refine was true and is false"),
    "scales": (("--scales", 0.5), "scales was [0.5, 0.75, 1.0] and is [0.5]"),
    "threshold": (("--threshold", 0.3), "threshold was 0.2 and is 0.3"),
    "max_side": (("--max-side", 90), "max_side was 800 and is 90"),
    "no max_side": (("--max-side", 0), "max_side was 800 and is null"),
    "nms": (("--box-nms", 0.5, "--soft-nms", True), "box_nms was null and is 0.5, soft_nms was false and is true"),
    "exif": (("--exif", "stored"), "exif was turned and is stored"),
}


def test_propose_goes_on_with_the_same_settings_only(
    photos: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    photo = photos / "a" / "IMG.png"
    base = ("propose", photo, "--out", out, "--no-overlay", "--resume")
    own = ("--checkpoint", tiny_checkpoint, "--top-n", 3)
    assert run(*base, *own) == 0
    before = contents(out)
    for options, differs in SETTINGS.values():
        said = fails(capsys, *base, *own, *options)
        assert f"IMG-{merged(out)[0]['image_id']}.json: " in said and f": {differs}; give the same" in said
    with monkeypatch.context() as patch:
        patch.setattr("sharpmask.fingerprint.__version__", "9.9")
        assert f"version was {__version__} and is 9.9; give the same, or another --out" in fails(capsys, *base, *own)
    model = load_model(tiny_checkpoint)
    with torch.no_grad():
        next(model.parameters()).mul_(1.01)
    save_model(model, tmp_path / "other.safetensors")
    assert "checkpoint was " in fails(capsys, *base, "--checkpoint", tmp_path / "other.safetensors", "--top-n", 3)
    # The same weights under another name, the same photo with another date.
    (tmp_path / "copy.safetensors").write_bytes(tiny_checkpoint.read_bytes())
    os.utime(photo, (1, 1))
    assert run(*base, "--checkpoint", tmp_path / "copy.safetensors", "--top-n", 3) == 0
    assert contents(out) == before
    for content in ((photos / "b" / "IMG.png").read_bytes(), photo.read_bytes()[:-1] + b"x"):
        photo.write_bytes(content)
        assert f"{photo} has changed since" in fails(capsys, *base, *own)
    assert contents(out) == before


def test_results_without_a_record_are_refused(
    photos: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: Capture
) -> None:
    base = ("propose", photos / "a", "--out", tmp_path, "--checkpoint", tiny_checkpoint, "--top-n", 1)
    (tmp_path / "IMG-1.json").write_text('[{"image_id": 1}]')
    assert "IMG-1.json: made by an older version" in fails(capsys, *base, "--resume")
    assert run(*base) == 0


def test_eval_goes_on_with_the_same_settings_only(
    synth: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: Capture
) -> None:
    base = ("eval", "--dataset", synth, "--checkpoint", tiny_checkpoint, "--out", tmp_path)
    assert run(*base, "--top-n", 5) == 0
    before = contents(tmp_path)
    assert "top_n was 5 and is 6 (5 more files are not of this run); " in fails(capsys, *base, "--top-n", 6, "--resume")
    assert "scales was " in fails(capsys, *base, "--top-n", 5, "--scales", 2, "--resume")
    assert contents(tmp_path) == before
    part = tmp_path / "refined" / "3.json"
    part.write_text(json.dumps(json.loads(part.read_text())["proposals"]))
    assert "refined/3.json: made by an older version" in fails(capsys, *base, "--top-n", 5, "--resume")
    part.unlink()
    assert run(*base, "--top-n", 5, "--resume") == 0
    assert contents(tmp_path) == before


@pytest.mark.parametrize("lost", ["deleted", "damaged", "emptied"])
def test_results_lost_during_the_run_are_made_again(
    lost: str, photos: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    out = tmp_path / "out"
    base = (
        "propose",
        photos / "a",
        photos / "b",
        "--checkpoint",
        tiny_checkpoint,
        "--top-n",
        2,
        "--no-overlay",
        "--out",
    )
    assert run(*base, tmp_path / "whole") == 0
    real, written = Parts.write, []

    def write(self: Parts, photo: Any, *results: Any) -> None:
        real(self, photo, *results)
        written.append(photo)
        if len(written) == 2:
            part = min(out.glob("*-*.json"))
            if lost == "deleted":
                part.unlink()
            else:
                part.write_text('{"settings"' * (lost == "damaged"))

    monkeypatch.setattr(Parts, "write", write)
    assert run(*base, out) == 0
    assert len(written) == 5 and "the results of 1 photo are gone, so it is searched again" in capsys.readouterr().err
    assert contents(out) == contents(tmp_path / "whole")


def test_a_photo_that_fails_stops_no_other(
    photos: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    real, calls = ProposalGenerator.generate, 0

    def generate(self: ProposalGenerator, image: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise MemoryError
        if calls == 2:
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            )
        return real(self, image)

    monkeypatch.setattr(ProposalGenerator, "generate", generate)
    (photos / "a" / "gone.png").symlink_to(photos / "a" / "nothing.png")
    given = [photos / "a" / "IMG.png", photos / "a" / "two.png", photos / "a" / "gone.png", photos / "b"]
    assert run("propose", *given, "--checkpoint", tiny_checkpoint, "--top-n", 1, "--out", tmp_path / "out") == 1
    said = capsys.readouterr().err.splitlines()
    assert f"sharpmask: {given[0]}: out of memory while it was searched; a smaller --max-side takes less" in said
    assert f"sharpmask: {given[1]}: out of memory while it was searched; a smaller --max-side takes less" in said
    assert any(line.startswith(f"sharpmask: {given[2]}: ") for line in said)
    assert said[-1] == f"3 of 5 photos failed, first: {given[0]}"
    assert len(merged(tmp_path / "out")) == 2


def test_names_too_long_for_results_end_no_run(synth: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, stem in enumerate(("x" * 251, "é" * 125, "zzz"), 1):
        (folder / f"{stem}.png").write_bytes((synth / "images" / f"00000{number}.png").read_bytes())
    base = ("propose", folder, "--checkpoint", tiny_checkpoint, "--top-n", 2, "--out", tmp_path / "out")
    assert run(*base) == 0
    before = contents(tmp_path / "out")
    assert len(before) == 7 and len(merged(tmp_path / "out")) == 6
    assert run(*base, "--resume") == 0
    assert contents(tmp_path / "out") == before


def test_a_second_run_is_refused(
    photos: Path, synth: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: Capture
) -> None:
    with output_folder(tmp_path / "out"):
        for command in (("propose", photos / "a"), ("eval", "--dataset", synth), ("demo",)):
            assert f"out: {tmp_path}/out is in use by another run (process {os.getpid()} on " in fails(
                capsys, *command, "--out", tmp_path / "out"
            )


# Killed.

CHILD = """
import json, os, resource, sys, time
from pathlib import Path
from sharpmask import files
from sharpmask.cli import main
from sharpmask.cli import overlap
from sharpmask.cli import parts as parts_module
from sharpmask.cli.overlap import Steps
from sharpmask.cli.parts import Parts
from sharpmask.cli.photo_ids import numbered
from sharpmask.cli.searching import search_all
from sharpmask.data.photos import find_photos

folder, out, stop, resume = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4] == "True"
counts = {}

def here(what):
    counts[what] = counts.get(what, 0) + 1
    if f"{what} {counts[what]}" == stop:
        print("here", flush=True)
        time.sleep(60)

def read(photo):
    here("read")

def search(photo, read):
    here("search")

def finish(photo, found):
    here("finish")
    return [{"image_id": photo.id, "score": 1 / n, "file_name": photo.name} for n in range(1, 400)]

def propose():
    photos = numbered(find_photos([folder]).photos)
    def refuse(photo, error):
        raise error
    with files.output_folder(out):
        parts, steps = Parts(out, {"top_n": 5}), Steps(read, search, finish)
        search_all(photos, parts, steps, refuse, merged=out / "proposals.json", resume=resume)
    return 0

real_replace, real_dumps = os.replace, json.dumps
def replace(*paths):
    here("replace")
    real_replace(*paths)
def dumps(value):
    here("entry" if "score" in value else "record")
    return real_dumps(value)
files.os.replace, parts_module.json.dumps = replace, dumps
overlap.PATIENCE = 0.2
if stop.startswith("full "):
    limit = int(stop.removeprefix("full "))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
import sharpmask.cli.program
sharpmask.cli.program.prepare = lambda argv: propose
sys.exit(main([]))
"""


def child(*arguments: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", CHILD, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    "stop", ["read 1", "read 3", "search 2", "finish 2", "replace 1", "replace 3", "entry 500", "replace 4"]
)
def test_a_killed_run_goes_on(stop: str, number: signal.Signals, tmp_path: Path) -> None:
    """Killed at a photo, in the write of a photo's results, and in the write of all results; then taken up again.

    A thread may hang then in the reading or drawing of a photo.
    """
    folder, whole, out = tmp_path / "photos", tmp_path / "whole", tmp_path / "out"
    folder.mkdir()
    for name in ("a.jpg", "b.jpg", "3.jpg"):
        (folder / name).write_text(name)
    assert child(folder, whole, "never", False).wait() == 0
    killed = child(folder, out, stop, False)
    assert killed.stdout is not None and killed.stdout.readline() == "here\n"
    killed.send_signal(number)
    _, said = killed.communicate()
    assert killed.returncode == (130 if number == signal.SIGINT else -number)
    assert "Traceback" not in said
    leftovers = [p.name for p in out.glob(".*")]
    assert bool(leftovers) == (number != signal.SIGINT)
    assert all(json.loads(p.read_text()) for p in out.glob("*.json")), "whole files only"
    assert child(folder, out, "never", True).wait() == 0
    assert contents(out) == contents(whole)


@pytest.mark.parametrize("room", ["none", "for one photo", "for two photos"])
def test_a_full_disk_is_told_with_the_file_and_loses_nothing(room: str, tmp_path: Path) -> None:
    folder, whole, out = tmp_path / "photos", tmp_path / "whole", tmp_path / "out"
    folder.mkdir()
    for name in ("a.jpg", "b.jpg", "3.jpg"):
        (folder / name).write_text(name)
    assert child(folder, whole, "never", False).wait() == 0
    one = max(len(content) for name, content in contents(whole).items() if name != "proposals.json")
    limit = {"none": 100, "for one photo": one, "for two photos": 2 * one}[room]
    ended = child(folder, out, f"full {limit}", False)
    _, said = ended.communicate()
    assert ended.returncode == 2 and "Traceback" not in said
    file = "3-3.json" if room == "none" else "proposals.json"
    assert said.splitlines()[-1] == f"sharpmask: {out / file}: File too large"
    assert len(list(out.glob("*"))) == (0 if room == "none" else 3)
    assert child(folder, out, "never", True).wait() == 0
    assert contents(out) == contents(whole)
