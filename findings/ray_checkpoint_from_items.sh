#!/usr/bin/env bash
# Ray 2.60.0: a job of Ray Data on rows from memory writes checkpoints, but does not read them, so it doubles its rows.
#
# Expected: a job with CheckpointConfig(id_column=...) that has stopped leaves out the rows that it has written when it
# runs again, or says that it cannot.
# Behaviour: for a job on ray.data.from_items the first run records the ids of the rows that it has written, and the second
# one writes these rows once more and succeeds. Nothing warns. Only operators that read a source compare rows with the
# checkpoints. The planner asks whether all inputs do, and an input in memory, which has no inputs of its own, passes.
#
# Seen: "stopped at the last of 8 rows: 6 written, 6 recorded; the same job again: 14 written; warnings: 0".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "ray[data]==2.60.0"
cd "$work"
RAY_USAGE_STATS_ENABLED=0 "$work/venv/bin/python" - <<'PYTHON'
import os
import warnings

import pyarrow.parquet as pq
import ray
from ray.data.checkpoint import CheckpointConfig

ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False, _temp_dir=os.path.abspath("ray"))
out, done, repaired = (os.path.abspath(name) for name in ("out", "done", "repaired"))
ray.data.DataContext.get_current().checkpoint_config = CheckpointConfig("id", done)


def work(row):
    if row["id"] == "photo7" and not os.path.exists(repaired):
        raise OSError("the connection was lost")
    return row


def job():
    photos = ray.data.from_items([{"id": f"photo{number}"} for number in range(8)], override_num_blocks=4)
    photos.map(work).write_parquet(out)


with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    try:
        job()
    except ray.exceptions.RayError:
        first, recorded = pq.read_table(out).num_rows, pq.read_table(done).num_rows
    open(repaired, "w").close()
    job()
again = pq.read_table(out).num_rows
told = sum("checkpoint" in str(warning.message).lower() for warning in caught)
print(
    f"stopped at the last of 8 rows: {first} written, {recorded} recorded; the same job again: {again} written; "
    f"warnings: {told}"
)
assert (first, recorded, again, told) == (6, 6, 14, 0), "the behaviour has changed"
PYTHON
