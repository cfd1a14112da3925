"""Memory and time of a cluster run's driver on synthetic photos: ``python -m bench.driver --photos 1000000``.

Everything that the driver does but waiting for workers: the manifest, the parts, the count in the end, and a resume of
the finished run. Each size runs in a process of its own: what a tenth of the photos and all need alike is flat.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import pyarrow as pa

from sharpmask.batch import Propose, photo_id
from sharpmask.distributed.places import Folder
from sharpmask.distributed.results import Results
from sharpmask.distributed.run import Parts
from sharpmask.distributed.sources import Photo

PROPOSALS = 3


def photos(count: int) -> Iterator[Photo]:
    for number in range(count):
        path = f"/data/photos/{number // 1000:06d}/IMG_{number:08d}.jpg"
        yield Photo(photo_id(path, "/data"), path)


def run(count: int) -> None:
    """Print the processor time of each step, and the peak memory."""
    settings = Propose()
    proposal = {"score": 0.5, "bbox": [1.0, 2.0, 30.0, 40.0], "area": 900, "counts": "abcd" * 30}
    row = {"height": 480, "width": 640, "proposals": [proposal] * PROPOSALS, "fingerprint": settings.fingerprint}
    schema = settings.schema()
    with tempfile.TemporaryDirectory() as place:
        results = Results(Folder(place), settings)
        results.open(resume=False, restart=False)
        clock = [time.process_time()]
        results.manifest.add(photos(count), 200)
        clock.append(time.process_time())
        parts = Parts(results, results.summary(), retry=False)
        for photo in parts.photos():
            parts.add(photo, pa.Table.from_pylist([row | {"id": photo.id, "path": photo.path}], schema))
        clock.append(time.process_time())
        again = Results(Folder(place), settings)
        again.open(resume=True, restart=False)
        again.manifest.add(photos(count), 200)
        assert again.summary().rows == count
        clock.append(time.process_time())
    steps = [f"{name} {after - before:.1f} s" for name, before, after in zip(STEPS, clock, clock[1:], strict=False)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(f"{count:9d} photos: {', '.join(steps)}; {peak:.0f} MB", flush=True)


STEPS = ("manifest", "rows", "resume")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=1_000_000)
    parser.add_argument("--alone", action="store_true", help="this size alone, in this process")
    options = parser.parse_args()
    if options.alone:
        run(options.photos)
        return
    for count in (options.photos // 10, options.photos):
        subprocess.run([sys.executable, "-m", "bench.driver", "--photos", str(count), "--alone"], check=True)


if __name__ == "__main__":
    main()
