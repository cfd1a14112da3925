"""Kill a worker, a node or the driver at a random moment, again and again: ``python -m tests.distributed.kills``.

After each kill, the run goes on or is resumed, and its rows are compared with those of an undisturbed search.
"""

import argparse
import os
import random
import signal
import tempfile
from pathlib import Path
from typing import Any

from .fakes import Fake
from .folders import expected, rows, wait_for
from .nodes import driver, replace_node, two_nodes

PHOTOS = 100
VICTIMS = ("worker", "node", "driver")


def kill_one(cluster: Any, place: Path, victim: str, after: int) -> None:
    """Kill ``victim`` when ``after`` photos have been begun. Fails where a row is lost, doubled or another one."""
    folder, out, fake = place / "photos", place / "out", Fake(place / "notes")
    for path in (folder, fake.notes):
        path.mkdir()
    for number in range(PHOTOS):
        (folder / f"{number:04d}.jpg").write_bytes(b"photo")
    running = driver(folder, cluster.address)
    wait_for(lambda: len(fake.searched()) >= after)
    if victim == "driver":
        running.kill()
        running.wait()
        running = driver(folder, cluster.address)
    elif victim == "node":
        replace_node(cluster)
    else:
        alive = [pid for pid in fake.processes() if Path(f"/proc/{pid}").exists()]
        os.kill(random.choice(alive), signal.SIGKILL)
    _, said = running.communicate()
    assert running.returncode == 0, said.decode()
    assert rows(out) == expected(folder, out, fake)
    print(
        f"{victim} killed after {after} photos: {len(fake.searched()) - 2 * PHOTOS} photos searched again", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random.seed(options.seed)
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")
    with tempfile.TemporaryDirectory() as temporary, two_nodes() as cluster:
        for number in range(options.kills):
            place = Path(temporary) / str(number)
            place.mkdir()
            kill_one(cluster, place, random.choice(VICTIMS), random.randint(1, PHOTOS - 20))
    print(f"{options.kills} kills: no row lost, doubled or changed")


if __name__ == "__main__":
    main()
