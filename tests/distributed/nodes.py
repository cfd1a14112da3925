"""A Ray cluster of two nodes on this machine, and a driver in a process of its own."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NODE = {"num_cpus": 1, "memory": 10**10, "object_store_memory": 80 * 10**6, "include_dashboard": False}
STARTS = 3
"""How often a node is started. Ray ends it where one of its own processes takes 15 seconds, on a busy machine."""

DRIVER = """
import sys
from pathlib import Path
from sharpmask.distributed import propose
from tests.distributed.fakes import Fake
folder, address = Path(sys.argv[1]), sys.argv[2]
propose(folder, folder.parent / "out", Fake(folder.parent / "notes"), address=address, workers=2, rows_per_file=10,
        memory=0.1, resume=True)
"""


@contextmanager
def two_nodes() -> Iterator[Any]:
    """A cluster with one core on each of two nodes."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args=NODE)
    try:
        cluster.add_node(**NODE)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.shutdown()


def driver(folder: Path, address: str) -> "subprocess.Popen[bytes]":
    """Searches the photos of a folder, or goes on with that, into the folder ``out`` beside it."""
    root = Path(__file__).parents[2]
    return subprocess.Popen([sys.executable, "-c", DRIVER, str(folder), address], cwd=root, stderr=subprocess.PIPE)


def replace_node(cluster: Any) -> None:
    """A node dies at once, with its worker, and another one comes."""
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
    for _ in range(STARTS):
        try:
            cluster.add_node(**NODE)
            break
        except Exception as error:  # Ray's has no class of its own
            failure = error
    else:
        raise failure
