"""Results files, good and bad."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sharpmask.errors import DataError
from sharpmask.evaluation import average_recall, load_results

from .cases import HEIGHT, WIDTH, annotation, dataset, ellipse, rle


def good_entry() -> dict[str, Any]:
    encoded = rle(ellipse(60, 60, 30, 30))
    segmentation = {"size": [HEIGHT, WIDTH], "counts": encoded["counts"].decode()}
    return {"image_id": 1, "category_id": 3, "score": 0.5, "segmentation": segmentation, "extra": "dropped"}


def test_load_results_gives_what_evaluation_needs(tmp_path: Path) -> None:
    truth = dataset([annotation(1, 1, ellipse(60, 60, 30, 30))])
    path = tmp_path / "results.json"
    empty = rle(np.zeros((HEIGHT, WIDTH), bool))["counts"].decode()
    nothing = {**good_entry(), "segmentation": {"size": [HEIGHT, WIDTH], "counts": empty}}
    path.write_text(json.dumps([good_entry(), {"image_id": 1, "score": 1, "bbox": [1, 2, 3, 4]}, nothing]))
    results = load_results(path, truth)
    assert [sorted(entry) for entry in results][1] == ["bbox", "category_id", "image_id", "score"]
    assert average_recall(truth, [results[0], results[2]]).ar[10]["all"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 2}, "image_id 2"),
        ({"image_id": [1]}, "image_id"),
        ({"image_id": True}, "image_id"),
        ({"score": math.nan}, "score"),
        ({"score": "0.5"}, "score"),
        ({"score": 10**400}, "score"),
        ({"segmentation": [[1, 1, 5, 1, 5, 5]]}, "RLE"),
        ({"segmentation": {"size": [HEIGHT, WIDTH + 1], "counts": "0"}}, "size"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": "0"}}, "runs"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}}, "compressed"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": "é"}}, "compressed"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": "ooo"}}, "RLE"),
        ({"segmentation": {"size": [HEIGHT, WIDTH]}}, "compressed"),
        ({"bbox": [0, 0, 5]}, "bbox"),
        ({"bbox": [0, 0, -5, 5]}, "bbox"),
        ({"bbox": [0, 0, 5, math.inf]}, "bbox"),
    ],
)
def test_load_results_refuses_bad_entries(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps([good_entry(), {**good_entry(), **change}]))
    with pytest.raises(DataError) as caught:
        load_results(path, dataset([]))
    text = str(caught.value)
    assert "results.json: entry 1:" in text and message in text and "\n" not in text and len(text) < 400


@pytest.mark.parametrize("content", [b"[{", b"\xff\xfe\x00", b"{}", b"[1]", b"[" * 100_000, b'[{"image_id": 1}]'])
def test_load_results_refuses_bad_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"results\.json"):
        load_results(path, dataset([]))
    with pytest.raises(DataError, match=r"nowhere\.json"):
        load_results(tmp_path / "nowhere.json", dataset([]))
