"""A search without a model: what happens on a photo is told by its file's name."""

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from sharpmask.batch import schema
from sharpmask.fingerprint import fingerprint


@dataclass
class Fake:
    """Rows of the interface of ``sharpmask.batch.Propose``.

    ``die``, ``hang``, ``fail``, ``bad`` and ``once`` in a file's name: the process is killed, it stops for ever, an
    exception is raised, the row has an error, the process is killed the first time. ``wait``: it goes on when ``notes``
    has a file ``go``. ``notes``: a folder with a file for each process that works, which grows by a line a photo.
    """

    notes: Path
    seconds: float = 0.02
    top_n: int = 100

    @property
    def record(self) -> dict[str, Any]:
        return {"checkpoint": "none", "top_n": self.top_n}

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.record)

    def schema(self) -> pa.Schema:
        return schema({self.fingerprint: self.record})

    def __call__(self, batch: Mapping[str, Any]) -> pa.Table:
        rows = [self._row(*photo) for photo in zip(batch["id"], batch["path"], batch["bytes"], strict=True)]
        return pa.Table.from_pylist(rows, self.schema())

    def searched(self) -> list[str]:
        """The ids of the photos that were begun, those of all processes."""
        return [line for path in self.notes.iterdir() if path.suffix == ".txt" for line in path.read_text().split()]

    def processes(self) -> list[int]:
        return [int(path.stem) for path in self.notes.glob("*.txt")]

    def _row(self, id: str, path: str, content: bytes | None) -> dict[str, Any]:
        with open(self.notes / f"{os.getpid()}.txt", "a") as file:
            print(id, file=file)
        time.sleep(self.seconds)
        name = Path(path).name
        if "die" in name or ("once" in name and self._first(name)):
            os.kill(os.getpid(), signal.SIGKILL)
        if "hang" in name:
            os.kill(os.getpid(), signal.SIGSTOP)
        while "wait" in name and not (self.notes / "go").exists():
            time.sleep(0.05)
        if "fail" in name:
            raise RuntimeError("no such kernel")
        row = {"id": id, "path": path, "fingerprint": self.fingerprint, "seconds": 0.0}
        if "bad" in name:
            return row | {"error": f"{path}: cannot be read"}
        proposal = {"score": 0.5, "bbox": [0.0, 0.0, 1.0, 1.0], "area": 1, "counts": id * 50}
        return row | {"height": len(name), "width": len(content or b""), "proposals": [proposal] * 3}

    def _first(self, name: str) -> bool:
        mark = self.notes / f"{name}.mark"
        try:
            mark.touch(exist_ok=False)
        except FileExistsError:
            return False
        return True
