"""Many photos: a batch of photos in, a batch of rows out, on any engine that maps batches.

Neither PyTorch nor pyarrow is imported before the first batch.
"""

from .ids import photo_id
from .propose import Propose
from .rows import PARQUET, VERSION, schema
from .writing import rows, write_rows, write_table

__all__ = ["PARQUET", "VERSION", "Propose", "photo_id", "rows", "schema", "write_rows", "write_table"]
