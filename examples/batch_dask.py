"""Rows of proposals on Dask: a bag of batches. Writes the folder rows, and counts what is in it."""

from importlib.resources import files
from pathlib import Path
from typing import Any

import dask.bag

from sharpmask.batch import Propose, write_table
from sharpmask.cli import main as sharpmask
from sharpmask.data.synthetic import synthesize


def saved(table: Any) -> Path:
    """Write the rows of a batch into a file named after its first photo, so that a second run writes the same."""
    path = Path("rows") / f"{table['id'][0]}.parquet"
    write_table(table, path)
    return path


def main() -> None:
    pictures = synthesize("pictures", images=3, seed=0, textures="generated")
    paths = [str(files("sharpmask") / "assets" / "coffee.jpg"), *map(str, sorted((pictures / "images").iterdir()))]
    Path("broken.jpg").write_bytes(b"no photo")
    paths.append("broken.jpg")

    batches = dask.bag.from_sequence([{"path": paths[i : i + 2]} for i in range(0, len(paths), 2)])
    # Threads of one process share the model. On a cluster, make a dask.distributed.Client first and leave this out.
    written = batches.map(Propose("small", top_n=20)).map(saved).compute(scheduler="threads")
    print(f"{len(written)} files")

    sharpmask(["results", "rows"])


if __name__ == "__main__":
    main()
