"""Memory and time of ``sharpmask results`` on synthetic rows: ``python -m bench.rows --rows 1000000``.

Each task runs in a process of its own, on a tenth of the rows and on all: what both need alike is flat.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pycocotools import mask as coco_mask

from sharpmask.batch import PARQUET, photo_id, schema
from sharpmask.files import atomic

TASKS = {"coco": ["--to", "coco"], "parquet": ["--to", "parquet"], "counts": []}
PER_FILE = 10_000
SIDE = 64


def synthetic(count: int, proposals: int, folder: Path) -> None:
    """Write ``count`` rows, each with as many discs for masks; the rows of a file differ in ids and paths alone."""
    random = np.random.default_rng(0)
    rows, cols = np.mgrid[:SIDE, :SIDE]
    entries = []
    for _ in range(proposals):
        y, x, r = random.integers(SIDE // 4, SIDE // 2, 3)
        disc = np.asfortranarray(((rows - y) ** 2 + (cols - x) ** 2 < r**2).astype(np.uint8))
        rle = coco_mask.encode(disc)
        box = coco_mask.toBbox(rle).tolist()
        entries.append({"score": 0.5, "bbox": box, "area": int(disc.sum()), "counts": rle["counts"].decode()})
    for start in range(0, count, PER_FILE):
        names = [
            f"photos/{number // 1000:06d}/IMG_{number:08d}.jpg" for number in range(start, min(start + PER_FILE, count))
        ]
        columns = {
            "id": [photo_id(name) for name in names],
            "path": names,
            "height": [SIDE] * len(names),
            "width": [SIDE] * len(names),
            "proposals": [entries] * len(names),
            "error": [None] * len(names),
            "fingerprint": ["0" * 16] * len(names),
            "seconds": [0.3] * len(names),
        }
        with atomic(folder / f"rows-{start:09d}.parquet") as part:
            pq.write_table(pa.Table.from_pydict(columns, schema()), part, row_group_size=200, **PARQUET)


def measured(folder: Path, task: str) -> tuple[float, float]:
    """Peak memory in MB and seconds of processor time."""
    out = folder.parent / "out"
    told = [*TASKS[task], "--out", str(out)] if TASKS[task] else []
    command = [sys.executable, "-m", "sharpmask.cli", "results", str(folder), *told]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    return used.ru_maxrss / 1e3, used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--proposals", type=int, default=3, help="of each row")
    options = parser.parse_args()
    for count in (options.rows // 10, options.rows):
        with tempfile.TemporaryDirectory() as place:
            (folder := Path(place) / "rows").mkdir()
            start = time.process_time()
            synthetic(count, options.proposals, folder)
            size = sum(path.stat().st_size for path in folder.iterdir())
            print(f"{count} rows, {size / 1e6:.0f} MB, made in {time.process_time() - start:.0f} s", flush=True)
            for task in TASKS:
                peak, seconds = measured(folder, task)
                print(f"  {task:8} {peak:6.0f} MB at most, {seconds:6.1f} s", flush=True)


if __name__ == "__main__":
    main()
