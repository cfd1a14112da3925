from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from sharpmask.data.coco import CocoFolder
from sharpmask.errors import DataError

HEIGHT, WIDTH = 40, 60
Document = dict[str, Any]


def square(x: float, y: float, side: float) -> list[float]:
    return [x, y, x + side, y, x + side, y + side, x, y + side]


def rectangle_runs(x: int, y: int, w: int, h: int) -> list[int]:
    """Uncompressed RLE counts of a filled rectangle, columns first."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y : y + h, x : x + w] = True
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    return np.diff(np.concatenate(([0], edges, [flat.size]))).tolist()


def valid_document() -> Document:
    compressed = coco_mask.encode(np.asfortranarray(np.eye(HEIGHT, WIDTH, dtype=np.uint8)))
    return {
        "images": [
            {"id": 7, "file_name": "b.png", "height": HEIGHT, "width": WIDTH},
            {"id": 3, "file_name": "a.png", "height": HEIGHT, "width": WIDTH},
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 5, "name": "dog"}],
        "annotations": [
            {
                "id": 12,
                "image_id": 3,
                "category_id": 1,
                "segmentation": [square(2, 3, 10), square(30, 20, 5)],
                "bbox": [2, 3, 33, 22],
                "area": 125.0,
                "iscrowd": 0,
            },
            {
                "id": 11,
                "image_id": 3,
                "category_id": 5,
                "segmentation": {"size": [HEIGHT, WIDTH], "counts": rectangle_runs(4, 6, 9, 8)},
                "iscrowd": 1,
            },
            {
                "id": 13,
                "image_id": 3,
                "category_id": 5,
                "segmentation": {"size": [HEIGHT, WIDTH], "counts": compressed["counts"].decode()},
            },
        ],
    }


def write(root: Path, document: Document) -> Path:
    (root / "images").mkdir(exist_ok=True)
    for name in ("a.png", "b.png"):
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), 99, np.uint8)).save(root / "images" / name)
    (root / "instances.json").write_text(json.dumps(document))
    return root


def test_reads_polygons_rle_and_crowds(tmp_path: Path) -> None:
    folder = CocoFolder(write(tmp_path, valid_document()))
    assert [photo.id for photo in folder.photos] == [3, 7]
    assert folder.categories == {1: "cat", 5: "dog"}
    assert folder.photos[1].instances == ()
    crowd, polygons, diagonal = folder.photos[0].instances
    assert [crowd.id, polygons.id, diagonal.id] == [11, 12, 13]
    assert [crowd.crowd, polygons.crowd, diagonal.crowd] == [True, False, False]

    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[6:14, 4:13] = True
    np.testing.assert_array_equal(crowd.mask(), expected)
    assert (crowd.box, crowd.area) == ((4, 6, 9, 8), 72)  # measured: the file names neither

    np.testing.assert_array_equal(diagonal.mask(), np.eye(HEIGHT, WIDTH, dtype=bool))
    assert polygons.mask().dtype == bool
    assert abs(int(polygons.mask().sum()) - 125) < 20
    assert polygons.mask()[5, 5]
    assert polygons.mask()[22, 32]
    assert (polygons.box, polygons.area) == ((2, 3, 33, 22), 125)
    np.testing.assert_array_equal(folder.photos[0].load(), np.full((HEIGHT, WIDTH, 3), 99))


def test_agrees_with_pycocotools(tmp_path: Path) -> None:
    folder = CocoFolder(write(tmp_path, valid_document()))
    theirs = COCO(str(tmp_path / "instances.json"))
    ours = COCO()
    ours.dataset = json.loads(json.dumps(folder.ground_truth()))
    ours.createIndex()
    for key, annotation in theirs.anns.items():
        np.testing.assert_array_equal(ours.annToMask(ours.anns[key]), theirs.annToMask(annotation))
    assert {image["id"] for image in ours.dataset["images"]} == {3, 7}


@pytest.mark.parametrize("place", ["images/{}", "{}"])
@pytest.mark.parametrize("name", ["instances.json", "annotations/instances_val.json", "elsewhere.json"])
def test_folder_layouts(tmp_path: Path, place: str, name: str) -> None:
    for image in ("a.png", "b.png"):
        path = tmp_path / place.format(image)
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(json.dumps(valid_document()))
    given_name = tmp_path / name if name == "elsewhere.json" else None
    assert len(CocoFolder(tmp_path, annotations=given_name).photos) == 2


def test_missing_or_ambiguous_annotation_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        CocoFolder(tmp_path / "nowhere")
    with pytest.raises(DataError, match="got 0"):
        CocoFolder(tmp_path)
    (tmp_path / "annotations").mkdir()
    for year in (2014, 2017):
        (tmp_path / "annotations" / f"instances_val{year}.json").write_text("{}")
    with pytest.raises(DataError, match="got 2"):
        CocoFolder(tmp_path)
    with pytest.raises(DataError, match=r"x\.json: cannot be read"):
        CocoFolder(tmp_path, annotations=tmp_path / "x.json")


def test_categories_filter_by_name(tmp_path: Path) -> None:
    folder = CocoFolder(write(tmp_path, valid_document()), categories=["dog"])
    assert folder.categories == {5: "dog"}
    assert [instance.id for photo in folder.photos for instance in photo.instances] == [11, 13]
    assert len(folder.photos) == 2
    assert {a["category_id"] for a in folder.ground_truth()["annotations"]} == {5}
    with pytest.raises(DataError, match=r"no category 'cow', known are: cat, dog"):
        CocoFolder(tmp_path, categories=["dog", "cow"])


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_truncated_json(tmp_path: Path, share: float) -> None:
    write(tmp_path, valid_document())
    path = tmp_path / "instances.json"
    text = path.read_text()
    path.write_text(text[: int(len(text) * share)])
    with pytest.raises(DataError, match=r"instances\.json: not valid JSON"):
        CocoFolder(tmp_path)


@pytest.mark.parametrize("text", ["[]", "3", '{"images": [], "annotations": {}, "categories": []}', "[" * 99999])
def test_json_of_another_shape(tmp_path: Path, text: str) -> None:
    (tmp_path / "instances.json").write_text(text)
    with pytest.raises(DataError, match=r"instances\.json: "):
        CocoFolder(tmp_path)


def annotation(**changes: Any) -> Callable[[Document], None]:
    return lambda document: document["annotations"][0].update(changes)


def image(**changes: Any) -> Callable[[Document], None]:
    return lambda document: document["images"][1].update(changes)


def rle(counts: object, size: object = (HEIGHT, WIDTH)) -> Callable[[Document], None]:
    return annotation(segmentation={"size": list(size), "counts": counts}, bbox=None)  # type: ignore[call-overload]


def without(section: str, position: int, field: str) -> Callable[[Document], None]:
    def remove(document: Document) -> None:
        del document[section][position][field]

    return remove


NAN, INF = float("nan"), float("inf")
BROKEN: dict[str, tuple[Callable[[Document], None], str]] = {
    "no polygon": (annotation(segmentation=[], bbox=None), "annotation 12: segmentation must be .*got nothing"),
    "empty polygon": (annotation(segmentation=[[], square(2, 3, 10)]), "annotation 12: polygon 1 of 2 must be .*got 0"),
    "two points": (annotation(segmentation=[[1, 1, 9, 9]]), "annotation 12: polygon must be x, y"),
    "a list of points": (
        annotation(segmentation=[[1, 1], [9, 1], [9, 9]]),
        "annotation 12: polygons must be flat lists x, y, x, y, ..., got a list of 3 points",
    ),
    "odd count": (annotation(segmentation=[[1, 1, 9, 1, 9, 9, 1]]), "annotation 12: polygon must be x, y"),
    "no area": (
        annotation(segmentation=[[1, 1, 9, 1, 5, 1]], bbox=None),
        "annotation 12: polygons must set .*got none: they are too thin",
    ),
    "NaN": (annotation(segmentation=[[1, 1, 9, NAN, 9, 9]]), "annotation 12: polygon must have finite coordinates"),
    "infinite": (
        annotation(segmentation=[[1, 1, 9, INF, 9, 9]]),
        "annotation 12: polygon must have finite coordinates",
    ),
    "far outside": (annotation(segmentation=[[1, 1, 1e8, 1, 9, 9]]), "annotation 12: .*far outside"),
    "far left": (annotation(segmentation=[[-1e8, 1, 9, 1, 9, 9]]), "annotation 12: .*far outside"),
    "far above": (annotation(segmentation=[[1, -1e8, 9, 1, 9, 9]]), "annotation 12: .*far outside"),
    "far below": (annotation(segmentation=[[1, 1e8, 9, 1, 9, 9]]), "annotation 12: .*far outside"),
    "outside": (
        annotation(segmentation=[square(61, 3, 5)]),
        "annotation 12: polygons must set .*got none: they are outside",
    ),
    "strings": (annotation(segmentation=[["1", "2"] * 3]), "annotation 12: polygon must be a list of numbers, got"),
    "flat list": (
        annotation(segmentation=square(1, 1, 9)),
        "annotation 12: segmentation must be a list of polygons or an RLE",
    ),
    "no segmentation": (without("annotations", 1, "segmentation"), "annotation 11: .*got nothing, and no bbox either"),
    "flat box alone": (annotation(segmentation=[], bbox=[5, 5, 9, -2]), "annotation 12: bbox must be a box in pixels"),
    "box alone outside": (
        annotation(segmentation=[], bbox=[61, 5, 9, 2]),
        "annotation 12: bbox must be a box in pixel",
    ),
    "box alone normalised": (annotation(segmentation=[], bbox=[0.1, 0.2, 0.3, 0.4]), "annotation 12: bbox must be a b"),
    "category": (annotation(category_id=4), "annotation 12: category_id must be .*got 4"),
    "image id": (annotation(image_id=4), "annotation 12: image_id must be .*got 4"),
    "image id list": (annotation(image_id=[3]), "annotation 12: image_id must be"),
    "iscrowd": (annotation(iscrowd=2), "annotation 12: iscrowd must be"),
    "bbox alone": (annotation(segmentation=[], bbox=[1, 2, 3]), "annotation 12: bbox must be \\[x"),
    "bbox alone NaN": (annotation(segmentation=[], bbox=[1, 2, 3, NAN]), "annotation 12: bbox must be \\[x"),
    "bbox alone, area": (annotation(segmentation=[], bbox=[1, 2, 3, 4], area="5"), "annotation 12: area must be"),
    "annotation id twice": (annotation(id=11), "annotation 11: .*more than once"),
    "annotation id": (annotation(id="12"), "annotation at position 0: id must be an integer"),
    "no object": (lambda d: d["annotations"].insert(1, "x"), "annotation at position 1: must be an object"),
    "RLE size": (rle([HEIGHT * WIDTH], (WIDTH, HEIGHT)), "annotation 12: RLE size must be"),
    "RLE sum": (rle([1, 2, 3]), "annotation 12: RLE runs .*sum to 40\\*60 = 2400, got 6"),
    "RLE negative": (rle([2401, -1]), "annotation 12: RLE counts must be"),
    "RLE huge": (rle([2**70, 1]), "annotation 12: RLE counts must be"),
    "RLE of too many runs": (rle([0] * 4809), "annotation 12: RLE counts must be at most 4808 runs"),
    "RLE string too long": (rle("0" * 4809), "annotation 12: RLE counts must be at most 4808 characters for 2400"),
    "RLE float": (rle([0.5]), "annotation 12: RLE counts must be"),
    "RLE empty": (rle([2400]), "annotation 12: RLE must set"),
    "RLE string sum": (rle("123"), "annotation 12: RLE runs"),
    "RLE string negative run": (rle("Q[2O"), "annotation 12: RLE runs must be 0 or more .*got 2400"),
    "RLE string characters": (rle("1\x7f"), "annotation 12: RLE counts must be characters"),
    "RLE string cut": (rle("1o"), "annotation 12: RLE counts must be whole"),
    "RLE string long number": (rle("oooooooo1"), "annotation 12: RLE counts must be numbers"),
    "missing image": (image(file_name="c.png"), r"image 3: .*c\.png: no such image file"),
    "image size": (image(width=HEIGHT), r"image 3: .*a\.png: must be 40x40 pixels .* got 60x40"),
    "image turned": (image(width=HEIGHT, height=WIDTH), "image 3: .*EXIF"),
    "no height": (without("images", 1, "height"), "image 3: height must be a number of pixels, got nothing"),
    "width text": (image(width="60"), "image 3: width must be a number of pixels, got '60'"),
    "escape": (image(file_name="../images/a.png"), "image 3: .*file_name must stay in"),
    "absolute": (image(file_name="/etc/passwd"), "image 3: .*file_name must stay in"),
    "file name": (image(file_name="a\n.png"), "image 3: file_name must be"),
    "image id twice": (image(id=7), "image 7: .*more than once"),
    "category name": (lambda d: d["categories"][1].update(name=3), "category 5: name must be"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_entries_give_one_line_or_are_skipped(tmp_path: Path, case: str) -> None:
    change, line = BROKEN[case]
    document = valid_document()
    change(document)
    write(tmp_path, document)
    with pytest.raises(DataError, match=rf"instances\.json: {line}") as caught:
        CocoFolder(tmp_path)
    assert "\n" not in str(caught.value)
    assert "--skip-bad" in str(caught.value)

    folder = CocoFolder(tmp_path, skip_bad=True)
    assert folder.skipped
    assert str(caught.value).startswith(folder.skipped[0])
    instances = [instance for photo in folder.photos for instance in photo.instances]
    examples = [instance.id for instance in instances if not instance.crowd]
    harmless = ("no object", "no segmentation", "annotation id twice", "empty polygon")
    assert len(examples) < 2 or len(folder.photos) < 2 or case in harmless
    for instance in instances:
        assert instance.mask().shape == (HEIGHT, WIDTH)


def test_a_skipped_image_is_one_line_and_takes_its_annotations_along(tmp_path: Path) -> None:
    document = valid_document()
    document["images"][1]["file_name"] = "gone.png"
    folder = CocoFolder(write(tmp_path, document), skip_bad=True)
    assert len(folder.skipped) == 1
    assert [(photo.id, photo.instances) for photo in folder.photos] == [(7, ())]


def test_nothing_is_skipped_in_good_data(tmp_path: Path) -> None:
    assert CocoFolder(write(tmp_path, valid_document()), skip_bad=True).skipped == []


def test_endless_polygon_is_refused(tmp_path: Path) -> None:
    document = valid_document()
    document["annotations"][0].update(segmentation=[[0, 0, 59, 0, 59, 39, 0, 39] * 200_000], bbox=None)
    with pytest.raises(
        DataError, match="annotation 12: segmentation must be short enough to draw, got polygons of 800000"
    ):
        CocoFolder(write(tmp_path, document))


def test_image_that_changed_after_reading(tmp_path: Path) -> None:
    folder = CocoFolder(write(tmp_path, valid_document()))
    photo = folder.photos[0]
    assert folder.load(photo) is folder.load(photo)
    copy = pickle.loads(pickle.dumps(folder))
    Image.fromarray(np.zeros((HEIGHT, WIDTH + 1, 3), np.uint8)).save(photo.path)
    with pytest.raises(DataError, match=r"a\.png: must be 60x40 .*got 61x40"):
        copy.load(copy.photos[0])
