"""Rows of proposals on Ray Data: each actor loads the model once. Writes the folder rows, and counts what is in it."""

import logging
import os
from importlib.resources import files
from pathlib import Path

import ray

from sharpmask.batch import PARQUET, Propose
from sharpmask.cli import main as sharpmask
from sharpmask.data.synthetic import synthesize


def main() -> None:
    pictures = synthesize("pictures", images=3, seed=0, textures="generated")
    paths = [str(files("sharpmask") / "assets" / "coffee.jpg"), *map(str, sorted((pictures / "images").iterdir()))]
    Path("broken.jpg").write_bytes(b"no photo")

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to the makers of Ray
    # "local": a Ray of its own, which ends with this program; "auto" finds the cluster that runs.
    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level=logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    photos = ray.data.from_items([{"path": os.path.abspath(path)} for path in [*paths, "broken.jpg"]])
    rows = photos.map_batches(
        Propose,
        fn_constructor_args=("small",),
        fn_constructor_kwargs={"top_n": 20},
        batch_size=2,
        compute=ray.data.ActorPoolStrategy(size=1),
    )
    rows.write_parquet(os.path.abspath("rows"), **PARQUET)
    ray.shutdown()

    sharpmask(["results", "rows"])


if __name__ == "__main__":
    main()
