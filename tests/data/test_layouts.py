"""The layouts of other programs, names that leave the folder, symbolic links, and photos that EXIF turns."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sharpmask.data.coco import CocoFolder
from sharpmask.errors import DataError

from .folders import HEIGHT, WIDTH, document, entry, photo, rectangle, write

OBJECT = entry(1, rectangle(5, 8, 20, 12))


def put(root: Path, file: str, photos: list[str], names: list[str], encoding: str = "utf-8") -> Path:
    for path in photos:
        photo(root / path)
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(json.dumps(document(OBJECT, names=tuple(names))), encoding=encoding)
    return root


LAYOUTS: dict[str, tuple[str, list[str], list[str]]] = {
    "COCO": ("annotations/instances_val2017.json", ["val2017/1.jpg"], ["1.jpg"]),
    "CVAT": ("annotations/instances_default.json", ["images/default/1.jpg"], ["1.jpg"]),
    "Roboflow, a part": ("_annotations.coco.json", ["1_jpg.rf.a0.jpg"], ["1_jpg.rf.a0.jpg"]),
    "Roboflow, one part only": ("train/_annotations.coco.json", ["train/1.jpg"], ["1.jpg"]),
    "labelme2coco": ("annotations.json", ["JPEGImages/1.jpg"], ["JPEGImages/1.jpg"]),
    "labelme2coco, Windows": ("annotations.json", ["JPEGImages/1.jpg"], ["JPEGImages\\1.jpg"]),
    "Label Studio": ("result.json", ["images/1.jpg"], ["images/1.jpg"]),
    "Label Studio, Windows": ("result.json", ["images/1.jpg"], ["images\\1.jpg"]),
    "Label Studio, with images": ("result_coco.json", ["images/4/1.jpg"], ["images\\4/1.jpg"]),
    "folder in the names": ("instances.json", ["images/1.jpg", "images/2.jpg"], ["images/1.jpg", "./2.jpg"]),
    "FiftyOne": ("labels.json", ["data/1.jpg"], ["1.jpg"]),
    "any one file": ("dataset.json", ["a/b/1.jpg"], ["a/b/1.jpg"]),
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_of_other_programs(tmp_path: Path, name: str, encoding: str) -> None:
    folder = CocoFolder(put(tmp_path, *LAYOUTS[name], encoding))
    assert [found.path for found in folder.photos] == [tmp_path / path for path in LAYOUTS[name][1]]
    assert folder.load(folder.photos[0]).shape == (HEIGHT, WIDTH, 3)
    assert folder.notes == []


def test_of_several_parts_one_must_be_named(tmp_path: Path) -> None:
    for part in ("test", "train", "valid"):
        put(tmp_path / part, "_annotations.coco.json", ["1.jpg"], ["1.jpg"])
    with pytest.raises(DataError, match=r"got 3 \(test/_annotations.coco.json, .*\); name the file with annotations="):
        CocoFolder(tmp_path)
    assert CocoFolder(tmp_path / "train").photos[0].path == tmp_path / "train" / "1.jpg"
    named = CocoFolder(tmp_path, annotations=tmp_path / "valid" / "_annotations.coco.json")
    assert named.photos[0].path == tmp_path / "valid" / "1.jpg"


def test_two_files_of_different_programs_are_ambiguous(tmp_path: Path) -> None:
    put(tmp_path, "result.json", ["1.jpg"], ["1.jpg"])
    put(tmp_path, "annotations.json", [], ["1.jpg"])
    with pytest.raises(DataError, match=r"must hold one annotation file, got 2 \(annotations.json, result.json\)"):
        CocoFolder(tmp_path)
    put(tmp_path, "instances.json", [], ["1.jpg"])
    assert CocoFolder(tmp_path).annotation_file == tmp_path / "instances.json"


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../1.png",
        "images/../../1.png",
        "..\\..\\label-studio\\media\\upload\\4\\1.png",
        "images\\..\\..\\1.png",
        "C:\\photos\\1.png",
        "C:/photos/1.png",
        "\\photos\\1.png",
        "\\\\server\\share\\1.png",
        "/data/local-files/?d=photos/1.png",
    ],
)
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    root = put(tmp_path / "set", "instances.json", ["images/1.png"], [name])
    photo(tmp_path / "1.png")
    with pytest.raises(DataError, match="image 1: file_name must stay in "):
        CocoFolder(root)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("at 3.45\u202fPM.png", None),
        ("a\u3000\xa0b.png", None),
        ("می\u200cخواهم.png", None),
        ("caf\xe9.png", "cafe\u0301.png"),
        ("cafe\u0301.png", "caf\xe9.png"),
    ],
)
def test_names_with_other_spaces_and_accents_are_found(tmp_path: Path, name: str, file: str | None) -> None:
    root = put(tmp_path / "set", "instances.json", [f"images/{file or name}"], [name])
    assert CocoFolder(root).photos[0].path.name == (file or name)


@pytest.mark.parametrize("name", ["a\n.png", "a\u2028.png", "a\x1b[0m.png", "a\u202e.png", "\udc80.png", "\0"])
def test_names_that_would_break_a_line_are_refused(tmp_path: Path, name: str) -> None:
    root = put(tmp_path / "set", "instances.json", ["images/1.png"], [name])
    with pytest.raises(DataError, match="image 1: file_name must be a printable text"):
        CocoFolder(root)


def linked(root: Path) -> Path:
    """A folder whose photos are one file of its own, one link inside, and two links that lead out."""
    outside = photo(root / "elsewhere" / "x.png")
    photo(root / "set" / "images" / "1.png")
    (root / "set" / "images" / "2.png").symlink_to("1.png")
    (root / "set" / "images" / "3.png").symlink_to(outside)
    (root / "set" / "more").symlink_to(outside.parent)
    names = ("1.png", "2.png", "3.png", "more/x.png")
    (root / "set" / "instances.json").write_text(json.dumps(document(OBJECT, names=names)))
    return root / "set"


def test_links_that_lead_out_are_said_or_refused(tmp_path: Path) -> None:
    root = linked(tmp_path)
    folder = CocoFolder(root)
    assert len(folder.photos) == 4
    (note,) = folder.notes
    assert "outside the folder, reached by symbolic links (links='refuse' or --links refuse refuses them): 2;" in note
    assert note.endswith(f"first: {root / 'images' / '3.png'} -> {tmp_path / 'elsewhere' / 'x.png'}")
    with pytest.raises(DataError, match=r"image 3: .*3\.png: must be in .*, got a symbolic link that leads out of it"):
        CocoFolder(root, links="refuse")
    folder = CocoFolder(root, links="refuse", skip_bad=True)
    assert [found.id for found in folder.photos] == [1, 2]
    assert len(folder.skipped) == 2
    with pytest.raises(ValueError, match="links must be 'follow' or 'refuse', got 'no'"):
        CocoFolder(root, links="no")  # type: ignore[arg-type]


def test_names_that_no_file_can_have(tmp_path: Path) -> None:
    write(tmp_path, OBJECT)
    (tmp_path / "images" / "circle.png").symlink_to("circle.png")
    (tmp_path / "images" / "folder.png").mkdir()
    for name in ("x" * 300 + ".png", "circle.png", "folder.png", "1.png/2.png"):
        (tmp_path / "instances.json").write_text(json.dumps(document(OBJECT, names=(name,))))
        with pytest.raises(DataError, match="image 1: ") as caught:
            CocoFolder(tmp_path)
        assert "\n" not in str(caught.value)


def test_one_file_as_two_images_is_said(tmp_path: Path) -> None:
    """The objects of either image are background in the other."""
    write(tmp_path, OBJECT)
    (tmp_path / "instances.json").write_text(json.dumps(document(OBJECT, names=("1.png", "images/1.png", "./1.png"))))
    assert CocoFolder(tmp_path).notes[0].endswith("whose objects are their background: 2; first: image 2")


def test_an_annotation_file_that_is_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    write(tmp_path, OBJECT)
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(DataError, match=r"pipe\.json: must be a regular file"):
        CocoFolder(tmp_path, annotations=tmp_path / "pipe.json")


def test_a_linked_annotation_file(tmp_path: Path) -> None:
    write(tmp_path / "set", OBJECT)
    os.replace(tmp_path / "set" / "instances.json", tmp_path / "there.json")
    (tmp_path / "set" / "instances.json").symlink_to(tmp_path / "there.json")
    assert "refuses them): 1;" in CocoFolder(tmp_path / "set").notes[0]
    with pytest.raises(DataError, match=r"instances\.json: must be in .*, got a symbolic link"):
        CocoFolder(tmp_path / "set", links="refuse")
    # A folder that is itself reached by a link is inside itself.
    write(tmp_path / "plain", OBJECT)
    (tmp_path / "alias").symlink_to(tmp_path / "plain")
    assert CocoFolder(tmp_path / "alias", links="refuse").notes == []


def oriented(root: Path, orientation: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Path:
    """A folder with one photo of stored size (HEIGHT, WIDTH), annotated with `size`, bright in the stored top left."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[:20, :20] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    (root / "images").mkdir(parents=True)
    Image.fromarray(pixels).save(root / "images" / "1.jpg", exif=exif)
    data: dict[str, Any] = document(entry(1, rectangle(0, 0, 20, 20)), names=("1.jpg",))
    data["images"][0] |= {"height": size[0], "width": size[1]}
    (root / "instances.json").write_text(json.dumps(data))
    return root


@pytest.mark.parametrize("skip_bad", [False, True])
@pytest.mark.parametrize(
    ("orientation", "size", "fits"),
    [
        (3, (HEIGHT, WIDTH), ""),
        (6, (HEIGHT, WIDTH), ", and the annotated size fits 'stored' only"),
        (8, (WIDTH, HEIGHT), ", and the annotated size fits 'turned' only"),
    ],
)
def test_photos_that_exif_turns_need_a_decision(
    tmp_path: Path, skip_bad: bool, orientation: int, size: tuple[int, int], fits: str
) -> None:
    root = oriented(tmp_path, orientation, size)
    with pytest.raises(DataError) as caught:
        CocoFolder(root, skip_bad=skip_bad)
    assert "photos with an EXIF orientation: 1; say which pixels are annotated" in str(caught.value)
    assert "--exif stored or --exif turned" in str(caught.value)
    assert str(caught.value).endswith(f"first: {root / 'images' / '1.jpg'} has orientation {orientation}{fits}")


def test_exif_says_which_pixels_are_annotated(tmp_path: Path) -> None:
    for orientation in range(2, 9):
        root = oriented(tmp_path / str(orientation), orientation)
        folder = CocoFolder(root, exif="stored")
        assert folder.photos[0].load()[5, 5, 0] > 200
        assert folder.load(folder.photos[0])[5, 5, 0] > 200
        size = (HEIGHT, WIDTH) if orientation < 5 else (WIDTH, HEIGHT)
        folder = CocoFolder(oriented(tmp_path / f"{orientation}t", orientation, size), exif="turned")
        corners = folder.photos[0].load()[[5, 5, -5, -5], [5, -5, 5, -5], 0] > 200
        assert folder.photos[0].load().shape[:2] == folder.load(folder.photos[0]).shape[:2] == size
        assert corners.tolist() == [
            orientation == 5,
            orientation in (2, 6),
            orientation in (4, 8),
            orientation in (3, 7),
        ]


def test_a_size_that_fits_the_other_pixels_only(tmp_path: Path) -> None:
    root = oriented(tmp_path, 6)
    with pytest.raises(DataError, match=r"got 60x80; the annotated size fits exif='stored' \(--exif stored\)"):
        CocoFolder(root, exif="turned")
    with pytest.raises(ValueError, match="exif must be 'stored', 'turned' or None, got 'up'"):
        CocoFolder(root, exif="up")  # type: ignore[arg-type]
