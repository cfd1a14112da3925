"""A Ray cluster of two nodes on this machine, and folders of results."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .fakes import Fake
from .nodes import two_nodes
from .s3 import serving

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_raylet_start_wait_time_s"] = "120"  # noqa: SIM112 for a busy machine; read when Ray is imported


@pytest.fixture(scope="session")
def cluster(server: str) -> Iterator[Any]:
    """Two nodes of one core each, and a connection of this process."""
    import ray

    with two_nodes() as cluster:
        ray.init(cluster.address, logging_level="ERROR", log_to_driver=False)
        yield cluster
        ray.shutdown()


@pytest.fixture
def photos(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder of files that are called photos."""

    def make(count: int, *others: str) -> Path:
        folder = tmp_path / "photos"
        folder.mkdir(exist_ok=True)
        for name in (*(f"{number:04d}.jpg" for number in range(count)), *others):
            (folder / name).write_bytes(name.encode())
        return folder

    return make


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    (tmp_path / "notes").mkdir()
    return Fake(tmp_path / "notes")


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The address of an object store on this machine, which workers find by the environment."""
    keys = {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none", "AWS_DEFAULT_REGION": "us-east-1"}
    with serving() as address, pytest.MonkeyPatch.context() as patch:
        for name, value in {"AWS_ENDPOINT_URL_S3": address, **keys}.items():
            patch.setenv(name, value)
        yield address


@pytest.fixture
def store(server: str) -> Callable[[dict[str, bytes]], str]:
    """Makes a bucket with files."""
    import s3fs

    def make(contents: dict[str, bytes]) -> str:
        files = s3fs.S3FileSystem()
        for name, content in contents.items():
            files.pipe_file(f"bucket/{name}", content)
        return "s3://bucket"

    return make
