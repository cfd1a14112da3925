"""Rows of proposals on Daft: a function of batches. Writes the folder rows, and counts what is in it."""

from importlib.resources import files
from pathlib import Path

import daft
import pyarrow as pa

from sharpmask.batch import Propose
from sharpmask.cli import main as sharpmask
from sharpmask.data.synthetic import synthesize


def main() -> None:
    pictures = synthesize("pictures", images=3, seed=0, textures="generated")
    paths = [str(files("sharpmask") / "assets" / "coffee.jpg"), *map(str, sorted((pictures / "images").iterdir()))]
    Path("broken.jpg").write_bytes(b"no photo")
    propose = Propose("small", top_n=20)

    @daft.func.batch(return_dtype=daft.DataType.from_arrow_type(pa.struct(list(propose.schema()))), batch_size=2)
    def found(path: daft.Series) -> pa.Array:
        return propose({"path": path.to_pylist()}).to_struct_array().combine_chunks()

    photos = daft.from_pydict({"path": [*paths, "broken.jpg"]})
    rows = photos.select(found(photos["path"]).alias("row")).select(daft.col("row").unnest())
    rows.write_parquet("rows", compression="zstd")

    sharpmask(["results", "rows"])


if __name__ == "__main__":
    main()
