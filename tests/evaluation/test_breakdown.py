"""Recall of groups of objects, and its table."""

from __future__ import annotations

import dataclasses
import io
import time
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from sharpmask.errors import DataError
from sharpmask.evaluation import (
    SIZES,
    Matches,
    average_recall,
    break_down,
    breakdown_table,
    difference_table,
    figures,
    match_objects,
    recall_table,
)
from sharpmask.evaluation.matching import NEVER
from sharpmask.evaluation.report import MOST_GROUPS

from .cases import annotation, dataset, ellipse, random_case, rle


def test_sizes_are_those_of_average_recall() -> None:
    truth, results = random_case(4)
    recall, groups = average_recall(truth, results), break_down(match_objects(truth, results), truth, "size")
    assert list(groups) == ["small", "medium", "large"]
    for size, found in groups.items():
        assert found.ar == pytest.approx({count: recall.ar[count][size] for count in (10, 100, 1000)})
        assert found.auc == pytest.approx(recall.auc[size])


@pytest.mark.parametrize("by", ["category", "source"])
def test_groups_add_up(by: Any) -> None:
    truth, results = random_case(4)
    for image in truth["images"]:
        image["source"] = "" if image["id"] == 2 else f"place {image['id'] % 2}"
    matches = match_objects(truth, results)
    groups = break_down(matches, truth, by)
    expected = {"c1", "c2", "c3"} if by == "category" else {"place 0", "place 1", "(unknown)"}
    assert set(groups) == expected
    counts = [found.objects for found in groups.values()]
    assert counts == sorted(counts, reverse=True) and min(counts) > 0
    (whole,) = figures(matches)
    assert sum(counts) == whole.objects
    total = sum(found.ar[100] * found.objects for found in groups.values())
    assert total / whole.objects == pytest.approx(whole.ar[100])
    assert len({found.ar[100] for found in groups.values()}) > 1


def every_photo_a_source(photos: int) -> tuple[Matches, dict[str, Any]]:
    """An object a photo, which nothing finds."""
    place = np.arange(photos)
    nearest = np.full((2, photos), -1)
    counted = np.repeat([[True], [True], [False], [False]], photos, axis=1)
    ranks = np.full((len(SIZES), photos, 10), NEVER, np.int32)
    matches = Matches("segm", 0, place, place, np.full(photos, 9.0), counted, ranks, nearest * 0.0, nearest, nearest)
    images = [{"id": key, "source": f"photo {key}"} for key in range(photos)]
    return matches, {"images": images, "annotations": [{"image_id": key} for key in range(photos)]}


def test_a_source_for_every_photo_takes_no_long_time_and_no_long_table() -> None:
    matches, truth = every_photo_a_source(10_000)
    begun = time.process_time()
    groups = break_down(matches, truth, "source")
    assert time.process_time() - begun < 3  # a quarter of a second, unless every group looks at all objects
    assert len(groups) == 10_000 and all(found.objects == 1 for found in groups.values())
    table = breakdown_table("source", groups, matches.most)
    assert table.row_count == MOST_GROUPS and f"the first {MOST_GROUPS} of 10000 groups" in str(table.caption)


def test_groups_by_number_are_those_by_mask() -> None:
    truth, results = random_case(4)
    matches = match_objects(truth, results)
    for size in SIZES:
        chosen = np.arange(len(matches.objects)) % 2 == 0
        by_mask, by_number = figures(matches, [(size, chosen), (size, np.flatnonzero(chosen))])
        assert by_mask.objects == by_number.objects == int((matches.counted[SIZES.index(size)] & chosen).sum())
        assert by_mask.to_json() == by_number.to_json()


def test_marks_stand_where_there_is_something_to_mark() -> None:
    mask = ellipse(60, 60, 30, 30)
    truth = dataset([annotation(key, key, mask) for key in range(1, 13)], images=12)
    matches = match_objects(truth, [{"image_id": key, "score": 1.0, "segmentation": rle(mask)} for key in range(1, 13)])
    (whole,) = figures(matches)
    same, better = (
        dataclasses.replace(whole, ar_interval=dict.fromkeys(whole.ar, (-1.0, 1.0)), auc_interval=(0, 0)),
        whole,
    )
    assert "excludes 0" not in str(difference_table({"same": same}).caption)
    assert "excludes 0" in str(difference_table({"better": better, "same": same}).caption)
    shown = io.StringIO()
    for table in (
        recall_table({"it": average_recall(truth, [])}),
        breakdown_table("size", break_down(matches, truth, "size"), matches.most),
    ):
        Console(width=200, file=shown).print(table)
    assert "0.0~" in shown.getvalue() and "-~" not in shown.getvalue()


def test_no_source_and_no_name() -> None:
    mask = ellipse(60, 60, 30, 30)
    truth = dataset([annotation(1, 1, mask, category_id=7)])
    matches = match_objects(truth, [{"image_id": 1, "score": 1.0, "segmentation": rle(mask)}])
    assert list(break_down(matches, truth, "category")) == ["(unknown)"]
    with pytest.raises(DataError, match="no image of the ground truth says its 'source'"):
        break_down(matches, truth, "source")


def test_the_table_shows_names_as_they_are() -> None:
    mask = ellipse(60, 60, 30, 30)
    truth = dataset([annotation(key, key, mask) for key in range(1, 31)], images=30)
    truth["categories"][0]["name"] = "[red]\x1b[2J"
    results = [{"image_id": key, "score": 1.0, "segmentation": rle(mask)} for key in range(1, 16)]
    matches = match_objects(truth, results)
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(breakdown_table("category", break_down(matches, truth, "category"), matches.most))
    text = console.export_text()
    row = next(line for line in text.splitlines() if "[red]" in line)
    assert "\x1b" not in text and "30" in row and "50.0" in row
    low, high = (float(end) for end in row.split("│")[6].split("-"))
    assert 25 < low < 45 and 55 < high < 75
    assert "?" not in row and "?" in text_of_few(matches, truth)


def text_of_few(matches: Any, truth: dict[str, Any]) -> str:
    groups = break_down(matches, truth, "size")
    return str(breakdown_table("size", groups, matches.most).caption)
