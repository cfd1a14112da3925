"""Whatever is killed, leaves, or runs full: every photo has one row, that of an undisturbed run."""

import os
import resource
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from sharpmask.distributed import Summary, propose
from sharpmask.distributed.places import Folder
from sharpmask.errors import DataError

from .fakes import Fake
from .folders import expected, rows, wait_for
from .nodes import driver, replace_node

Photos = Callable[..., Path]
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cluster")]


def search(folder: Path, fake: Fake, **options: Any) -> Summary:
    given = {"workers": 2, "rows_per_file": 10, "memory": 0.1, "say": print} | options
    return propose(folder, folder.parent / "out", fake, **given)


def in_thread(call: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """A call at work, and where its result will be."""
    result: list[Any] = []
    thread = threading.Thread(target=lambda: result.append(call()))
    thread.start()
    return thread, result


def test_a_worker_is_killed(photos: Photos, fake: Fake) -> None:
    folder = photos(60)
    thread, result = in_thread(lambda: search(folder, fake))
    for wanted in (8, 25, 40):
        wait_for(lambda wanted=wanted: len(fake.searched()) >= wanted)
        alive = [pid for pid in fake.processes() if Path(f"/proc/{pid}").exists()]
        os.kill(alive[-1], signal.SIGKILL)
    thread.join()
    assert result[0].rows == 60 and not result[0].failed and not result[0].left
    found = rows(folder.parent / "out")
    assert found == expected(folder, folder.parent / "out", fake)


def test_a_photo_that_kills_its_workers_has_a_row_with_the_error(photos: Photos, fake: Fake) -> None:
    folder = photos(30, "die.jpg", "once.jpg", "fail.jpg", "bad.jpg")
    summary = search(folder, fake)
    assert (summary.rows, summary.failed, summary.left) == (34, 3, {})
    found = rows(folder.parent / "out")
    assert found["die.jpg"]["error"].endswith("die.jpg: given up after 3 workers: its process died")
    assert found["fail.jpg"]["error"].endswith("fail.jpg: given up after 3 workers: RuntimeError: no such kernel")
    assert found["bad.jpg"]["error"].endswith("bad.jpg: cannot be read")
    assert found["once.jpg"]["error"] is None
    begun = Counter(fake.searched())
    more = [begun[found[f"{name}.jpg"]["id"]] - tries for name, tries in (("die", 3), ("fail", 3), ("bad", 1))]
    # Each of the three workers whose search failed may have begun its next photo before it was ended.
    assert min(more) >= 0 and sum(more) <= 3
    assert sum(row["error"] is None for row in found.values()) == 31


def test_a_photo_on_which_its_workers_hang(photos: Photos, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sharpmask.distributed.pool.TRIES", 2)
    folder = photos(0, "hang.jpg", "then.jpg")
    summary = search(folder, fake, workers=1, photo_seconds=3)
    assert (summary.rows, summary.failed) == (2, 1)
    found = rows(folder.parent / "out")
    assert found["hang.jpg"]["error"].endswith("hang.jpg: given up after 2 workers: no result after 3 seconds")
    assert found["then.jpg"]["error"] is None


def test_the_driver_is_killed(photos: Photos, fake: Fake, cluster: Any) -> None:
    folder = photos(60)
    out = folder.parent / "out"
    killed = driver(folder, cluster.address)
    wait_for(lambda: len(list(out.glob("part-*.parquet"))) >= 2)
    killed.kill()
    killed.wait()
    parts = sorted(out.glob("part-*.parquet"))
    assert all(pq.read_table(path).num_rows == 10 for path in parts) and len(parts) < 6
    finished = {row["id"] for path in parts for row in pq.read_table(path, columns=["id"]).to_pylist()}
    before = Counter(fake.searched())
    # Its workers end with it, and their cores are free again.
    summary = search(folder, fake, resume=True)
    assert summary.rows == 60 and not summary.left
    assert rows(out) == expected(folder, out, fake)
    after = Counter(fake.searched())
    assert all(after[id] <= before[id] + 1 for id in finished), "what was finished is not searched again"


def test_a_node_leaves(photos: Photos, fake: Fake, cluster: Any) -> None:
    folder = photos(60)
    thread, result = in_thread(lambda: search(folder, fake))
    wait_for(lambda: len(fake.searched()) >= 10 and len(fake.processes()) >= 2)
    replace_node(cluster)
    thread.join()
    assert result[0].rows == 60 and not result[0].failed
    assert rows(folder.parent / "out") == expected(folder, folder.parent / "out", fake)


@pytest.fixture
def busy_head(cluster: Any) -> Iterator[None]:
    """The first node's core is taken, so that workers run on the other."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(Fake).options(num_cpus=1, scheduling_strategy=here).remote(Path())
    ray.get(actor.processes.remote())
    yield
    ray.kill(actor)


@pytest.mark.usefixtures("busy_head")
@pytest.mark.parametrize("most", [10, 3])
def test_nodes_that_leave_are_no_fault_of_a_photo(
    most: int, photos: Photos, fake: Fake, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless it is there too often."""
    monkeypatch.setattr("sharpmask.distributed.pool.MOST_TRIES", most)
    monkeypatch.setattr("sharpmask.distributed.pool.MOST_DEATHS", 3)
    folder = photos(0, "wait.jpg")
    thread, _ = in_thread(lambda: search(folder, fake, workers=1))
    times = min(most, 4)
    for begun in range(1, times + 1):
        wait_for(lambda begun=begun: len(fake.searched()) == begun)
        replace_node(cluster)
    (fake.notes / "go").touch()
    thread.join()
    (row,) = rows(folder.parent / "out").values()
    if times < most:
        assert row["error"] is None and len(fake.searched()) == times + 1
    else:
        assert f"wait.jpg: given up after {most} workers: its " in row["error"] and len(fake.searched()) == times


def test_the_disk_is_full(photos: Photos, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = photos(40)
    out = folder.parent / "out"
    write = Folder.write

    def on_a_full_disk(self: Folder, name: str, content: bytes) -> None:
        """The third part does not fit: the system writes some of it, and refuses the rest."""
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        full = len(list(out.glob("part-*.parquet"))) == 2 and name.startswith("part-")
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(content) // 2 if full else soft, hard))
        try:
            write(self, name, content)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "write", on_a_full_disk)
        with pytest.raises(OSError, match=r"part-0000-0000\d\d\.parquet"):
            search(folder, fake)
    assert len(list(out.glob("part-*.parquet"))) == 2
    assert not list(out.rglob(".*"))
    assert search(folder, fake, resume=True).rows == 40
    assert rows(out) == expected(folder, out, fake)


def test_a_second_run_into_the_same_folder(photos: Photos, fake: Fake) -> None:
    folder = photos(40)
    out = folder.parent / "out"
    thread, result = in_thread(lambda: search(folder, fake))
    wait_for(lambda: fake.searched())
    with pytest.raises(DataError, match=r"out is in use by another run"):
        search(folder, fake, resume=True)
    thread.join()
    assert result[0].rows == 40
    first = rows(out)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.*")}
    begun = len(fake.searched())
    with pytest.raises(DataError, match=r"--resume goes on with them, --restart begins again"):
        search(folder, fake)
    assert search(folder, fake, resume=True).rows == 40
    assert len(fake.searched()) == begun and {p: p.stat().st_mtime_ns for p in out.rglob("*.*")} == times
    assert rows(out) == first == expected(folder, out, fake)


def test_workers_that_cannot_work_stop_the_run(photos: Photos, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sharpmask.distributed.pool.MOST_DEATHS", 4)
    folder = photos(0, *(f"fail-{number}.jpg" for number in range(9)))
    with pytest.raises(DataError, match=r"workers died 4 times without any photo searched.*no such kernel"):
        search(folder, fake)
