"""Data sets of other programs, as COCO: the masks are those that supervision reads of them."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import supervision as sv
from PIL import Image
from pycocotools import mask as coco_mask

from sharpmask.cli import main
from sharpmask.data.coco import CocoFolder
from sharpmask.errors import DataError
from sharpmask.formats.datasets import convert

HEIGHT, WIDTH = 60, 80


def objects() -> np.ndarray:
    """One of one part, one with a hole, one of two parts."""
    masks = np.zeros((3, HEIGHT, WIDTH), bool)
    masks[0, 10:30, 10:40] = True
    masks[1, 35:55, 5:30] = True
    masks[1, 40:50, 10:20] = False
    masks[2, 5:20, 50:60] = masks[2, 30:50, 55:75] = True
    return masks


@pytest.fixture
def dataset(tmp_path: Path) -> sv.DetectionDataset:
    """Two photos, one without an object, as supervision has them."""
    (tmp_path / "from").mkdir()
    paths = [str(tmp_path / "from" / name) for name in ("a.jpg", "b.jpg")]
    for path in paths:
        Image.new("RGB", (WIDTH, HEIGHT)).save(path)
    masks = objects()
    found = sv.Detections(xyxy=sv.mask_to_xyxy(masks), mask=masks, class_id=np.array([0, 1, 1]))
    return sv.DetectionDataset(
        classes=["cup", "fork"], images=paths, annotations={paths[0]: found, paths[1]: sv.Detections.empty()}
    )


def masks_of(folder: Path) -> dict[str, list[np.ndarray]]:
    """By the photo's name, as training reads them."""
    data = CocoFolder(folder)
    return {photo.path.name: [each.mask() for each in photo.instances] for photo in data.photos}


def decoded(document: dict[str, Any]) -> list[np.ndarray]:
    return [coco_mask.decode(entry["segmentation"]) > 0 for entry in document["annotations"]]


def test_labelme(dataset: sv.DetectionDataset, tmp_path: Path) -> None:
    root = tmp_path / "data"
    dataset.as_labelme(images_directory_path=str(root), annotations_directory_path=str(root))
    document, notes = convert(root)
    np.testing.assert_array_equal(decoded(document), objects())
    assert [image["file_name"] for image in document["images"]] == ["a.jpg", "b.jpg"] and not notes
    assert [entry["iscrowd"] for entry in document["annotations"]] == [0, 0, 0], "parts and holes make no crowd"
    assert [entry["category_id"] for entry in document["annotations"]] == [1, 2, 2]
    assert [each["name"] for each in document["categories"]] == ["cup", "fork"]


def test_yolo(dataset: sv.DetectionDataset, tmp_path: Path) -> None:
    root = tmp_path / "data"
    dataset.as_yolo(str(root / "images"), str(root / "labels"), str(root / "data.yaml"), approximation_percentage=0)
    document, _ = convert(root)
    read = sv.DetectionDataset.from_yolo(str(root / "images"), str(root / "labels"), str(root / "data.yaml"))
    expected = next(found for path, _, found in read if path.endswith("a.jpg"))
    np.testing.assert_array_equal(decoded(document), expected.mask)
    assert [image["file_name"] for image in document["images"]] == ["images/a.jpg", "images/b.jpg"]


def test_voc(dataset: sv.DetectionDataset, tmp_path: Path) -> None:
    root = tmp_path / "data"
    dataset.as_pascal_voc(str(root / "JPEGImages"), str(root / "Annotations"), approximation_percentage=0)
    document, _ = convert(root)
    read = sv.DetectionDataset.from_pascal_voc(str(root / "JPEGImages"), str(root / "Annotations"))
    expected = next(found for path, _, found in read if path.endswith("a.jpg"))
    np.testing.assert_array_equal(decoded(document), expected.mask)
    # Of VOC's own picture of objects, each is what has its number.
    index = np.zeros((HEIGHT, WIDTH), np.uint8)
    count = len(expected.mask)
    for number, mask in enumerate(np.roll(objects()[[0, 2]], 3, axis=2), 1):
        index[mask] = number
    (root / "SegmentationObject").mkdir()
    Image.fromarray(index).save(root / "SegmentationObject" / "a.png")
    document, _ = convert(root, "voc")
    assert len(document["annotations"]) == count
    for number, mask in enumerate(decoded(document), 1):
        np.testing.assert_array_equal(mask, index == number if number < 3 else expected.mask[number - 1])


def png(mask: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def labelme(root: Path, content: list[dict[str, Any]], **changes: Any) -> Path:
    root.mkdir(exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / "a.jpg")
    head = {"shapes": content, "imagePath": "a.jpg", "imageHeight": HEIGHT, "imageWidth": WIDTH}
    (root / "a.json").write_text(json.dumps(head | changes))
    return root


NOTHING, DOT = png(np.zeros((1, 1), bool)), png(np.ones((1, 1), bool))
SQUARE = [[10, 10], [20, 10], [20, 20], [10, 20]]


def test_groups_masks_and_rectangles_of_labelme(tmp_path: Path) -> None:
    part = np.random.default_rng(0).random((7, 9)) > 0.5
    shapes = [
        {"label": "cup", "points": SQUARE, "group_id": 1, "shape_type": "polygon"},
        {"label": "cup", "points": [[50, 30], [40, 25]], "group_id": 1, "shape_type": "rectangle"},
        {"label": "cup", "points": [[3, 4], [11, 10]], "shape_type": "mask", "mask": png(part)},
        {"label": "dot", "points": [[5, 5]], "shape_type": "point"},
    ]
    document, notes = convert(labelme(tmp_path / "data", shapes))
    assert notes == ["shapes of type 'point', left out: 1"]
    first, second = decoded(document)
    expected = np.zeros((2, HEIGHT, WIDTH), bool)
    expected[0, 10:21, 10:21] = expected[0, 25:31, 40:51] = True
    expected[1, 4:11, 3:12] = part
    np.testing.assert_array_equal([first, second], expected)


def test_the_command_writes_what_training_reads(
    dataset: sv.DetectionDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    dataset.as_labelme(images_directory_path=str(root), annotations_directory_path=str(root))
    assert main(["convert-dataset", str(root)]) == 0
    assert "instances.json: 2 photos, 3 objects" in capsys.readouterr().out.replace("\n", "")
    data = CocoFolder(root)
    assert not data.notes and [len(photo.instances) for photo in data.photos] == [3, 0]
    assert not any(each.crowd for photo in data.photos for each in photo.instances)
    assert main(["convert-dataset", str(root)]) == 2
    assert "instances.json is there already" in capsys.readouterr().err
    other = tmp_path / "other.json"
    assert main(["convert-dataset", str(root), "--out", str(other), "--layout", "labelme", "--partial"]) == 0
    assert all(photo.complete for photo in CocoFolder(root).photos)
    assert not any(photo.complete for photo in CocoFolder(root, annotations=other).photos)
    said = json.loads(other.read_text())
    assert said.pop("info") == {"complete": False} and said == json.loads((root / "instances.json").read_text())
    assert main(["convert-dataset", str(tmp_path / "none")]) == 2
    assert "dataset: " in capsys.readouterr().err


def test_boxes_are_crowds(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "images" / "a.jpg")
    (tmp_path / "labels" / "a.txt").write_text("1 0.5 0.5 0.25 0.5\n\n0 0.1 0.1 0.5 0.1 0.5 0.5\n")
    (tmp_path / "data.yaml").write_text("names:\n  0: cup\n  1: fork\n")
    document, notes = convert(tmp_path)
    assert notes == ["boxes without a mask, which count as crowds: 1"]
    assert document["annotations"][0]["bbox"] == [30, 15, 20, 30]
    (tmp_path / "instances.json").write_text(json.dumps(document))
    (photo,) = CocoFolder(tmp_path).photos
    assert [each.crowd for each in photo.instances] == [True, False]


@pytest.mark.parametrize(
    ("shapes", "changes", "said"),
    [
        ([{"label": "x", "points": [[1, 2]]}], {}, "a polygon must be three or more points"),
        ([{"label": "x", "points": [[1, 2], [3, float("nan")], [4, 5]]}], {}, "a polygon must be three or more points"),
        ([{"label": "x", "points": [[1, 2], [1e9, 2], [3, 4]]}], {}, "a polygon must be three or more points"),
        ([{"label": "x", "points": [[100, 2], [110, 2], [100, 5]]}], {}, "must have a pixel on the photo of 80x60"),
        ([{"label": "x", "points": [[1, 2]], "shape_type": "rectangle"}], {}, "points must be two corners"),
        ([{"label": "x", "points": [[1, 2], [3, 4]], "shape_type": "mask", "mask": "??"}], {}, "mask must be a PNG"),
        (
            [{"label": "x", "points": [[float("inf"), 2], [3, 4]], "shape_type": "mask", "mask": NOTHING}],
            {},
            "no pixel",
        ),
        ([{"label": "x", "points": [[float("nan"), 2], [3, 4]], "shape_type": "mask", "mask": DOT}], {}, "be finite"),
        ([], {"shapes": 5}, "shapes must be a list of objects, got 5"),
        ([], {"imagePath": "../../etc/passwd"}, "its photo must be in"),
        ([], {"imagePath": None}, "must name its photo, got None"),
        (
            [],
            {"imageWidth": 100000},
            "imageHeight and imageWidth must be the photo's (60, 80) or null, got (60, 100000)",
        ),
    ],
)
def test_bad_labelme_files(tmp_path: Path, shapes: list[dict[str, Any]], changes: dict[str, Any], said: str) -> None:
    root = labelme(tmp_path / "data", shapes, **changes)
    with pytest.raises(DataError) as caught:
        convert(root)
    assert str(caught.value).startswith(f"{root / 'a.json'}: ") and said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("told", [{"imageHeight": None}, {"imageHeight": None, "imageWidth": None}])
def test_labelme_may_leave_the_size_to_the_photo(tmp_path: Path, told: dict[str, None]) -> None:
    root = labelme(tmp_path / "data", [{"label": "x", "points": SQUARE}], **told)
    (image,) = convert(root)[0]["images"]
    assert (image["height"], image["width"]) == (HEIGHT, WIDTH)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "iso-8859-1", "windows-1251", "gbk", "shift_jis"])
def test_voc_in_any_encoding(tmp_path: Path, encoding: str) -> None:
    """That Python knows, also those that expat refuses."""
    label = {"iso-8859-1": "tasse à café", "windows-1251": "чашка", "gbk": "杯子", "shift_jis": "カップ"}.get(
        encoding, "ß杯"
    )
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "a.jpg")
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    content = f"<filename>a.jpg</filename><object><name>{label}</name>{box}</object>"
    head = f'<?xml version="1.0" encoding="{encoding.removesuffix("-sig")}"?>'
    (tmp_path / "a.xml").write_bytes(f"{head}<annotation>{content}</annotation>".encode(encoding))
    assert [category["name"] for category in convert(tmp_path)[0]["categories"]] == [label]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-7", "gbk"])
def test_entities_are_refused_in_any_encoding(tmp_path: Path, encoding: str) -> None:
    bomb = f'<?xml version="1.0" encoding="{encoding}"?><!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>'
    (tmp_path / "a.xml").write_bytes(bomb.encode(encoding))
    with pytest.raises(DataError, match=r"a\.xml: cannot be read as XML: EntitiesForbidden"):
        convert(tmp_path)


@pytest.mark.parametrize("encoding", ["klingon", "zlib", "ascii", "utf-16"])
def test_an_encoding_that_the_text_is_not_in(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.xml").write_bytes(f'<?xml version="1.0" encoding="{encoding}"?><a>é</a>'.encode())
    with pytest.raises(DataError, match=r"a\.xml: cannot be read"):
        convert(tmp_path)


def test_other_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must hold annotations in one of the layouts labelme, voc, yolo, got none"):
        convert(tmp_path)
    root = labelme(tmp_path / "data", [{"label": "x", "points": SQUARE}])
    (root / "a.xml").write_text("<annotation><filename>a.jpg</filename>")
    with pytest.raises(DataError, match="got files of 2: labelme, voc; say which with --layout"):
        convert(root)
    with pytest.raises(DataError, match=r"a\.xml: cannot be read as XML"):
        convert(root, "voc")
    bomb = '<!DOCTYPE a [<!ENTITY b "c">]><annotation><filename>&b;</filename></annotation>'
    (root / "a.xml").write_text(bomb)
    with pytest.raises(DataError, match=r"a\.xml: cannot be read as XML"):
        convert(root, "voc")
    with pytest.raises(DataError, match=r"must hold data\.yaml, which names the classes, got none"):
        convert(root, "yolo")
    (root / "images").mkdir()
    (root / "labels").mkdir()
    (root / "data.yaml").write_text("names: [cup]\n")
    with pytest.raises(DataError, match="must hold photos annotated in the layout yolo, got none"):
        convert(root, "yolo")
    (root / "a.jpg").rename(root / "images" / "a.jpg")
    for line, said in (
        ("0 a", "must be numbers"),
        ("3 0 0 1 1", "must begin with the number of a class"),
        ("0 nan .1 .5 .1", "a box must have a size and lie on the photo of 80x60"),
        ("0 .1 .1 -.5 .1", "a box must have a size"),
        ("0 5 5 .1 .1", "a box must have a size"),
    ):
        (root / "labels" / "a.txt").write_text(line)
        with pytest.raises(DataError, match=rf"a\.txt: line 1: {said}"):
            convert(root, "yolo")


def test_no_annotations_are_passed_over(tmp_path: Path) -> None:
    root = labelme(tmp_path / "late", [{"label": "x", "points": SQUARE}], imageData="A" * 100_000)
    document = json.loads((root / "a.json").read_text())
    (root / "a.json").write_text(json.dumps(document, sort_keys=True))
    assert len(convert(root)[0]["annotations"]) == 1
    (root / "b.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"a\.jpg: must be annotated by one file, got two"):
        convert(root)
    (root / "b.json").write_text(json.dumps(document), encoding="utf-16")
    with pytest.raises(DataError, match=r"b\.json: cannot be read"):
        convert(root)
    yolo = tmp_path / "yolo"
    for name in ("images", "labels"):
        (yolo / name).mkdir(parents=True)
    (yolo / "data.yaml").write_text("names: [cup]\n")
    (yolo / "labels" / "classes.txt").write_text("cup\n")
    Image.new("RGB", (WIDTH, HEIGHT)).save(yolo / "images" / "a.jpg")
    assert len(convert(yolo)[0]["images"]) == 1
    (yolo / "labels" / "b.txt").write_text("0 .5 .5 .1 .1")
    with pytest.raises(DataError, match=r"b\.txt: must have its photo of the same name"):
        convert(yolo)


@pytest.mark.parametrize("corners", ["nan 2 20 30", "30 2 20 30", "inf 2 20 30", "100 2 120 30"])
def test_boxes_of_voc_lie_on_the_photo(tmp_path: Path, corners: str) -> None:
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "a.jpg")
    places = zip(("xmin", "ymin", "xmax", "ymax"), corners.split(), strict=True)
    box = "".join(f"<{name}>{place}</{name}>" for name, place in places)
    content = f"<filename>a.jpg</filename><object><name>cup</name><bndbox>{box}</bndbox></object>"
    (tmp_path / "a.xml").write_text(f"<annotation>{content}</annotation>")
    with pytest.raises(DataError, match=r"a\.xml: 'cup': a box must have a size and lie on the photo of 80x60"):
        convert(tmp_path)


def test_a_turned_photo_needs_an_answer(tmp_path: Path) -> None:
    root = labelme(tmp_path / "data", [{"label": "x", "points": SQUARE}], imageHeight=WIDTH, imageWidth=HEIGHT)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / "a.jpg", exif=exif)
    with pytest.raises(DataError, match=r"a\.jpg: has EXIF orientation 6; say which pixels were annotated"):
        convert(root)
    document, _ = convert(root, exif="turned")
    assert document["images"][0]["height"] == WIDTH
    with pytest.raises(DataError, match="imageHeight and imageWidth must be the photo's"):
        convert(root, exif="stored")
