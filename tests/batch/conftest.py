"""Photos, and rows of them by a tiny model."""

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sharpmask.batch import Propose


@pytest.fixture(scope="session")
def propose(tiny_checkpoint: Path) -> Propose:
    return Propose(tiny_checkpoint, top_n=6)


@pytest.fixture(scope="session")
def photos(synth: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two good photos and a broken one."""
    folder = tmp_path_factory.mktemp("batch") / "photos"
    folder.mkdir()
    for name, source in (("000007", "000001"), ("b", "000002")):
        shutil.copy(synth / "images" / f"{source}.png", folder / f"{name}.png")
    (folder / "c.png").write_bytes(b"\x89PNG broken")
    return folder


@pytest.fixture(scope="session")
def table(photos: Path, propose: Propose) -> Any:
    return propose({"path": [str(path) for path in sorted(photos.iterdir())]})


def changed(table: Any, index: int, **columns: Any) -> Any:
    """A table with another row at ``index``."""
    rows = table.to_pylist()
    rows[index] |= columns
    return pa.Table.from_pylist(rows, table.schema)
