"""Proposals as a table in the format Parquet."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..files import atomic
from ..packages import needed


def write(path: Path, photos: Iterable[list[dict[str, Any]]]) -> None:
    """Write entries of COCO results, a row each; those of one photo are in memory at a time.

    The columns are the entries' fields, with ``size`` (h, w) and ``counts`` for ``segmentation``. Raises ``DataError``
    without the package pyarrow, and an ``OSError`` that names the file.
    """
    arrow = needed("pyarrow", "format parquet")
    numbers, text = arrow.list_(arrow.float64()), arrow.string()
    schema = arrow.schema(
        {
            "image_id": arrow.int64(),
            "file_name": text,
            "exif": text,
            "category_id": arrow.int64(),
            "score": arrow.float64(),
            "area": arrow.int64(),
            "stability": arrow.float64(),
            "bbox": numbers,
            "window": numbers,
            "size": arrow.list_(arrow.int64()),
            "counts": text,
        }
    )
    with atomic(path) as part, needed("pyarrow.parquet", "format parquet").ParquetWriter(part, schema) as writer:
        for entries in photos:
            rows = [entry | entry["segmentation"] for entry in entries]
            writer.write_table(arrow.Table.from_pylist(rows, schema))
