"""The second pass over files of rows: filtered, merged, and written for other programs, a batch at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, get_args

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from ..data.images import check_size
from ..data.orientation import Exif
from ..errors import DataError
from ..files import atomic, short_name, write_text
from ..formats.outputs import NAME, labelme, yolo
from ..packages import needed
from ..ranges import Range, Settings
from .masks import BadMask, areas
from .rows import PARQUET, arrow, schema
from .survey import Survey, stem_of

GROUP: Final = 1024
"""Rows in a row group of merged rows."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Wanted(Settings):
    """Which proposals of a photo are taken: of those with such scores and areas the first ``top``."""

    min_score: Annotated[float, Range(0, 1)] = 0.0
    min_area: Annotated[int, Range(0, 2**31 - 1)] = 0
    top: Annotated[int, Range(1, 100_000)] | None = None


def selected(survey: Survey, wanted: Wanted) -> Iterator[Any]:
    """The rows that count, with the proposals wanted, as batches of the schema.

    Every mask is checked. Raises ``DataError`` that names the file and the row.
    """
    start = 0
    for file in survey.files:
        for batch in file.batches():
            kept = survey.kept[start : start + len(batch)]
            start += len(batch)
            if len(kept) < len(batch):
                raise DataError(f"{file.path}: must be as it was, but has changed while it was read")
            if kept.any():
                yield _chosen(batch.filter(arrow().array(kept)), wanted, file.path)


def write_coco(survey: Survey, wanted: Wanted, out: Path) -> int:
    """Write COCO results, as ``sharpmask propose`` does, an entry a line. Returns the number of proposals."""
    count = 0

    def lines() -> Iterator[str]:
        nonlocal count
        for image_id, row in _good(survey, wanted):
            for entry in _entries(survey, image_id, row):
                yield ("[\n" if count == 0 else ",\n") + json.dumps(entry)
                count += 1
        yield "\n]\n" if count else "[]\n"

    write_text(out, lines())
    return count


def write_parquet(survey: Survey, wanted: Wanted, out: Path) -> int:
    """Write the rows, failed ones too, into one file. Returns the number of proposals."""
    pa, count = arrow(), 0
    types = schema({key: record for key, record in survey.records.items() if key in survey.fingerprints})
    writer_of = needed("pyarrow.parquet", "results", "batch").ParquetWriter
    with atomic(out) as part, writer_of(part, types, **PARQUET) as writer:
        waiting: list[Any] = []
        for batch in selected(survey, wanted):
            count += len(batch.column("proposals").flatten())
            waiting.append(batch)
            if sum(map(len, waiting)) >= GROUP:
                writer.write_table(pa.Table.from_batches(waiting).cast(types))
                waiting = []
        if waiting:
            writer.write_table(pa.Table.from_batches(waiting).cast(types))
    return count


def write_labelme(survey: Survey, wanted: Wanted, out: Path) -> int:
    """Write a labelme document a photo into the folder ``out``. Returns the number of proposals."""
    count = 0
    for _, row in _good(survey, wanted):
        path = out / short_name(f"{stem_of(row['id'], row['path'])}.json")
        image = row["path"] or row["id"]
        if "://" not in image:
            image = os.path.relpath(os.path.abspath(image), os.path.abspath(out))
        scores = [entry["score"] for entry in row["proposals"]]
        write_text(path, json.dumps(labelme(_masks(row), scores, (row["height"], row["width"]), image)))
        count += len(scores)
    return count


def write_yolo(survey: Survey, wanted: Wanted, out: Path) -> int:
    """Write a YOLO label a photo, and ``data.yaml``, into the folder ``out``. Returns the number of proposals."""
    count = 0
    for _, row in _good(survey, wanted):
        path = out / "labels" / short_name(f"{stem_of(row['id'], row['path'])}.txt")
        write_text(path, yolo(_masks(row), (row["height"], row["width"])))
        count += len(row["proposals"])
    write_text(out / "data.yaml", f"nc: 1\nnames: [{NAME}]\n")
    return count


def _good(survey: Survey, wanted: Wanted) -> Iterator[tuple[int, Row]]:
    """The rows that count and did not fail, with their ids in COCO."""
    ids = iter(survey.image_ids[survey.kept].tolist())
    for batch in selected(survey, wanted):
        for row in batch.to_pylist():
            image_id = next(ids)
            if row["error"] is None:
                yield image_id, row


def _entries(survey: Survey, image_id: int, row: Row) -> Iterator[dict[str, Any]]:
    """A row's proposals as entries of COCO results."""
    exif = survey.records.get(row["fingerprint"], {}).get("exif")
    own = {"exif": exif} if exif in get_args(Exif) else {}
    for entry in row["proposals"]:
        yield {
            "image_id": image_id,
            "category_id": 1,
            "segmentation": {"size": [row["height"], row["width"]], "counts": entry["counts"]},
            "bbox": entry["bbox"],
            "score": entry["score"],
            "area": entry["area"],
            "file_name": row["path"] or row["id"],
            **own,
        }


def _masks(row: Row) -> Iterator[NDArray[np.bool_]]:
    size = [row["height"], row["width"]]
    for entry in row["proposals"]:
        yield coco_mask.decode({"size": size, "counts": entry["counts"].encode("ascii")}).astype(bool)


def _chosen(batch: Any, wanted: Wanted, path: str | Path) -> Any:
    """A batch with the proposals wanted, which are checked."""
    pa, compute = arrow(), needed("pyarrow.compute", "results", "batch")
    column = batch.column("proposals")
    flat, owner = column.flatten(), compute.list_parent_indices(column).to_numpy()
    scores, boxes, found_areas, counts = flat.flatten()
    if sum(array.null_count for array in (scores, boxes, found_areas, counts)):
        raise DataError(f"{path}: a proposal must have score, bbox, area and counts, got none of one of them")
    if not np.isfinite(scores.to_numpy()).all():
        bad = owner[np.flatnonzero(~np.isfinite(scores.to_numpy()))[0]]
        raise DataError(f"{_where(batch, bad, path)}: score must be a finite number, got another")
    kept = (scores.to_numpy() >= wanted.min_score) & (found_areas.to_numpy() >= wanted.min_area)
    if wanted.top is not None:
        before = np.concatenate([[0], np.cumsum(kept)])[np.searchsorted(owner, np.arange(len(batch)))]
        kept &= np.cumsum(kept) - before[owner] <= wanted.top
    flat, owner = flat.filter(pa.array(kept)), owner[kept]
    _check(batch, flat, owner, path)
    ends = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=len(batch)))]).astype(np.int32)
    failed = compute.and_(column.is_null(), batch.column("error").is_valid())
    chosen = pa.ListArray.from_arrays(pa.array(ends), flat, type=column.type, mask=failed)
    place = batch.schema.get_field_index("proposals")
    return batch.set_column(place, batch.schema.field(place), chosen)


def _check(batch: Any, flat: Any, owner: NDArray[np.int64], path: str | Path) -> None:
    """Raise ``DataError`` for a proposal that is none of its photo."""
    sides = [batch.column(name).fill_null(0).to_numpy().astype(np.int64) for name in ("height", "width")]
    for row in np.unique(owner):
        check_size(_where(batch, row, path), int(sides[1][row]), int(sides[0][row]))
    _, boxes, found_areas, counts = flat.flatten()
    numbers = boxes.flatten().to_numpy(zero_copy_only=False)
    lengths = boxes.value_lengths().to_numpy()
    if (lengths != 4).any() or not np.isfinite(numbers).all():
        bad = np.flatnonzero(lengths != 4) if (lengths != 4).any() else np.flatnonzero(~np.isfinite(numbers)) // 4
        raise DataError(f"{_where(batch, owner[bad[0]], path)}: bbox must be four finite numbers, got others")
    try:
        drawn = areas(counts, (sides[0] * sides[1])[owner])
    except BadMask as error:
        raise DataError(f"{_where(batch, owner[error.index], path)}: {error}") from None
    differ = np.flatnonzero(drawn != found_areas.to_numpy())
    if len(differ):
        told = f"{drawn[differ[0]]}, got {found_areas[int(differ[0])]}"
        raise DataError(f"{_where(batch, owner[differ[0]], path)}: area must be its mask's {told}")


def _where(batch: Any, row: Any, path: str | Path) -> str:
    """A row, in errors."""
    return f"{path}: row {batch.column('id')[int(row)].as_py()}"
