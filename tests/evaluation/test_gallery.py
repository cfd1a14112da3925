"""The page of missed objects: which objects, which proposals, and that the page is safe to open."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sharpmask.errors import DataError
from sharpmask.evaluation import match_objects, write_gallery
from sharpmask.evaluation.gallery import missed

from .cases import HEIGHT, WIDTH, annotation, dataset, ellipse, rle

TAGS = {"html", "meta", "style", "title", "h1", "h2", "p", "section", "figure", "div", "figcaption", "br", "img"}
GREY = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)


def result(mask: np.ndarray, score: float, image: int = 1) -> dict[str, Any]:
    return {"image_id": image, "score": score, "segmentation": rle(mask)}


def half(mask: np.ndarray, part: float) -> np.ndarray:
    """The upper part of the pixels of a mask."""
    kept = np.zeros(mask.shape, bool)
    kept.flat[np.flatnonzero(mask)[: round(part * mask.sum())]] = True
    return kept


class Page(HTMLParser):
    """The tags of a page, with their attributes, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def pictures(page: Page) -> list[np.ndarray]:
    found = []
    for tag, attributes in page.tags:
        if tag == "img":
            kind, _, data = str(attributes["src"]).partition(",")
            assert kind == "data:image/jpeg;base64"
            picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
            assert picture.shape[:2] == (int(str(attributes["height"])), int(str(attributes["width"])))
            found.append(picture)
    return found


def test_the_page(tmp_path: Path) -> None:
    object_, thing = ellipse(60, 60, 40, 30), ellipse(140, 100, 10, 12)
    truth = dataset([annotation(1, 1, object_), annotation(2, 1, thing, category_id=2)], categories=2)
    truth["categories"][1]["name"] = "<script>alert(1)</script>"
    truth["images"][0]["file_name"] = '"><img src="https://example.com/x.png">.jpg'
    results = [result(half(object_, 0.25), 0.5), result(half(object_, 0.7), 0.4), result(ellipse(20, 20, 5, 5), 0.9)]
    path = tmp_path / "gallery.html"
    path.write_text("old")
    assert write_gallery(path, match_objects(truth, results), truth, results, lambda _: GREY, title="a < b") == 2
    page = Page(path)
    assert [path.name for path in tmp_path.iterdir()] == ["gallery.html"]
    # The text of others is text; nothing is loaded and nothing runs.
    assert "<script>alert(1)</script>, small: " in page.text and truth["images"][0]["file_name"] in page.text
    assert {tag for tag, _ in page.tags} <= TAGS
    (policy,) = [a["content"] for tag, a in page.tags if tag == "meta" and a.get("http-equiv")]
    assert str(policy).startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    # Of the larger object, the nearest proposal is the second best after that in an empty corner.
    assert "of the first 100: IoU 0.70, rank 3" in page.text and "of all" not in page.text
    shown = pictures(page)
    assert len(shown) == 3 and "No proposal touches it." in page.text
    assert all(max(picture.shape) <= 320 for picture in shown)
    wanted, given = (np.abs(picture.astype(int) - 128).max(axis=2) > 30 for picture in shown[:2])
    assert wanted.shape == given.shape
    assert given.sum() / wanted.sum() == pytest.approx(0.7, abs=0.05)  # what is filled in


def test_ranks_beyond_the_first_hundred(tmp_path: Path) -> None:
    mask = ellipse(60, 60, 40, 30)
    truth = dataset([annotation(1, 1, mask)])
    results = [result(half(mask, 0.2), 0.9), *[result(ellipse(170, 130, 9, 9), 0.8)] * 120, result(mask, 0.1)]
    write_gallery(tmp_path / "x.html", match_objects(truth, results), truth, results, lambda _: GREY)
    text = Page(tmp_path / "x.html").text
    assert "of the first 100: IoU 0.20, rank 1" in text and "of all: IoU 1.00, rank 122" in text


def test_sizes_take_turns_and_photos_too() -> None:
    small, large = (ellipse(60, 60, side, side) for side in (8, 60))
    annotations = [annotation(key, 1, small) for key in range(1, 10)]
    annotations += [annotation(10 + photo, photo, mask) for photo in range(2, 8) for mask in (small, large)]
    truth = dataset(annotations, images=7)
    results = [result(half(large, part), 0.5, photo) for photo, part in ((3, 0.9), (4, 0.1), (5, 0.6))]
    matches = match_objects(truth, results)
    chosen = missed(matches, 6)
    assert [each.size for each in chosen] == ["large"] * 3 + ["small"] * 3
    assert matches.nearest_iou[0][[each.at for each in chosen[:3]]].tolist() == [0, 0, 0]
    twelve = missed(matches, 12)
    assert np.bincount(matches.photos[[each.at for each in twelve]]).tolist() == [2, 2, 1, 2, 1, 2, 2]
    every = missed(matches, 30)
    large_ones = [float(matches.nearest_iou[0][each.at]) for each in every if each.size == "large"]
    assert large_ones == sorted(large_ones) and large_ones[-1] == pytest.approx(0.9, abs=0.01)
    assert len(every) == len({each.at for each in every}) == 21
    one = dataset(annotations[:9])
    assert len(missed(match_objects(one, []), 20)) == 9  # a single photo may fill the page


def test_what_is_found_comes_last() -> None:
    """The third object of a photo that is missed comes before one of another photo that is found."""
    small, large = (ellipse(60, 60, side, side) for side in (8, 60))
    truth = dataset([*(annotation(key, 1, small) for key in range(1, 6)), annotation(6, 2, large)], images=2)
    matches = match_objects(truth, [result(large, 0.5, 2)])
    assert [matches.photos[each.at] for each in missed(matches, 5)] == [0] * 5
    assert [each.size for each in missed(matches, 6)] == ["large"] + ["small"] * 5


def test_pictures_keep_their_shape(tmp_path: Path) -> None:
    """Where CSS limits the width, the attribute of the height must not hold either."""
    write_gallery(tmp_path / "x.html", match_objects(dataset([]), []), dataset([]), [], lambda _: GREY)
    (rule,) = re.findall(r"\.pair img \{(.*)\}", (tmp_path / "x.html").read_text())
    assert "max-width: 100%;" in rule and "height: auto;" in rule


def test_boxes_and_photos_that_cannot_be_read(tmp_path: Path) -> None:
    truth = dataset(
        [{"id": 1, "image_id": 1, "bbox": [10, 10, 60, 40]}, annotation(2, 2, ellipse(60, 60, 9, 9))], images=2
    )
    results = [{"image_id": 1, "score": 1.0, "bbox": [10.0, 10.0, 1e99, 20.0]}]

    def load(key: int) -> np.ndarray:
        if key == 2:
            raise DataError("b.jpg: broken <b>")
        return GREY

    write_gallery(tmp_path / "x.html", match_objects(truth, results, kind="bbox"), truth, results, load)
    page = Page(tmp_path / "x.html")
    assert len(pictures(page)) == 2 and "b.jpg: broken <b>" in page.text


def test_a_page_is_whole_or_the_old_one(tmp_path: Path) -> None:
    mask = ellipse(60, 60, 40, 30)
    truth = dataset([annotation(1, 1, mask)])

    def fail(_: int) -> np.ndarray:
        raise RuntimeError("unexpected")

    (tmp_path / "x.html").write_text("old")
    with pytest.raises(RuntimeError):
        write_gallery(tmp_path / "x.html", match_objects(truth, []), truth, [], fail)
    assert (tmp_path / "x.html").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_nothing_to_show(tmp_path: Path) -> None:
    assert write_gallery(tmp_path / "x.html", match_objects(dataset([]), []), dataset([]), [], lambda _: GREY) == 0
    assert re.search(r"<h1>.*</h1>", (tmp_path / "x.html").read_text())
