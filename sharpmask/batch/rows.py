"""What a row says of a photo: docs/results.md lists the columns. pyarrow is imported when it is needed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from ..packages import needed

if TYPE_CHECKING:
    from ..search import Proposals

VERSION: Final = "1"
"""Of the schema; a file of rows has it under ``VERSION_KEY`` in its metadata."""
VERSION_KEY: Final = b"sharpmask.rows"
RECORD_KEY: Final = b"sharpmask.settings"
"""Under it, metadata have the settings by their fingerprint, as JSON."""
PARQUET: Final[dict[str, Any]] = {"compression": "zstd", "use_dictionary": ["fingerprint", "error"]}
"""How files of rows are written: options of ``pyarrow.parquet.ParquetWriter``."""


def arrow() -> Any:
    """The module pyarrow. Raises ``DataError`` where it is not installed."""
    return needed("pyarrow", "a table of rows", "batch")


def schema(records: Mapping[str, Mapping[str, Any]] | None = None) -> Any:
    """The columns as a ``pyarrow.Schema``, whose metadata have the version, and settings by their fingerprint.

    Raises ``DataError`` without the package pyarrow.
    """
    pa = arrow()
    # Elements are called as Parquet calls them, so what is read has the same schema.
    box = pa.list_(pa.field("element", pa.float32()))
    proposal = pa.struct({"score": pa.float32(), "bbox": box, "area": pa.int32(), "counts": pa.string()})
    columns = {
        "id": pa.string(),
        "path": pa.string(),
        "height": pa.int32(),
        "width": pa.int32(),
        "proposals": pa.list_(pa.field("element", proposal)),
        "error": pa.string(),
        "fingerprint": pa.string(),
        "seconds": pa.float32(),
    }
    return pa.schema(columns, metadata={VERSION_KEY: VERSION, RECORD_KEY: json.dumps(records or {})})


def of_proposals(found: Proposals) -> dict[str, Any]:
    """The columns that tell what was found."""
    height, width = found.size
    entries = [
        {"score": float(score), "bbox": box.tolist(), "area": int(area), "counts": rle["counts"].decode("ascii")}
        for score, box, area, rle in zip(found.scores, found.boxes, found.areas, found.rles, strict=True)
    ]
    return {"height": height, "width": width, "proposals": entries}
