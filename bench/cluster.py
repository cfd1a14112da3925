"""``propose --cluster ray`` beside as many plain processes: ``python -m bench.cluster --photos 40 --rounds 3``.

Both search the same photos with the shipped model, in turns, each worker or process with one thread. Start-up is apart:
a time begins when each has searched two photos, and ends with the last photo's row. A round before them samples memory:
the proportional set size of the workers, in which a page that several share counts once. In the end, a finished run of
``--resume`` photos is resumed by the command.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

from sharpmask.batch import Propose
from sharpmask.distributed import propose
from sharpmask.distributed.places import Folder
from sharpmask.distributed.results import Results
from sharpmask.distributed.run import Parts
from sharpmask.distributed.sources import photos_of

from .photo.many import vary

WARM = 2
"""Photos that each worker searches before its time begins."""
RAY_PARTS = ("gcs_server", "raylet", "ray/_private", "ray/dashboard", "ray::")


def plain(photos: Sequence[str], out: str) -> None:
    """A plain process: searches photos one by one, the first of them before it is told to begin."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch

    torch.set_num_threads(1)
    settings = Propose()
    rows = [settings({"path": [photo]}) for photo in photos[:WARM]]
    print("ready", flush=True)
    sys.stdin.readline()
    rows += [settings({"path": [photo]}) for photo in photos[WARM:]]
    pq.write_table(pa.concat_tables(rows), f"{out}/{os.getpid()}.parquet")
    print("done", flush=True)


def on_ray(folder: str, out: str, workers: int) -> None:
    """Print the seconds between the rows of the first photos and the last row."""
    times: dict[int, float] = {}
    summary = propose(
        folder, out, Propose(), workers=workers, progress=lambda done, _: times.update({done: time.perf_counter()})
    )
    assert not summary.failed and not summary.left
    print(times[summary.rows] - times[WARM * workers], flush=True)


def _self(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "bench.cluster", *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def time_plain(folder: Path, out: Path, workers: int) -> float:
    photos = sorted(map(str, folder.iterdir()))
    with ExitStack() as stack:
        processes = [
            stack.enter_context(_self("--plain", *photos[first::workers], "--out", out)) for first in range(workers)
        ]
        _hear(processes, "ready")
        start = time.perf_counter()
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        _hear(processes, "done")
        return time.perf_counter() - start


def _hear(processes: Iterable[subprocess.Popen[str]], word: str) -> None:
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == f"{word}\n"


def time_ray(folder: Path, out: Path, workers: int) -> float:
    with _self("--ray", folder, "--out", out, "--workers", workers) as process:
        said, _ = process.communicate()
    return float(said.split()[-1])


def memory(name: str, search: Callable[[], float], of: Sequence[str]) -> None:
    """Print the peak of the memory of the processes whose commands have one of ``of``, while ``search`` works."""
    peaks = dict.fromkeys(of, 0)
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(0.2):
            now = dict.fromkeys(of, 0)
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    kind = next((text for text in of if text in command), None)
                    if kind is not None:
                        line = (process / "smaps_rollup").read_text().partition("\nPss:")[2]
                        now[kind] += int(line.split()[0])
                except (OSError, IndexError):  # it has ended
                    continue
            for kind, size in now.items():
                peaks[kind] = max(peaks[kind], size)

    thread = threading.Thread(target=sample)
    thread.start()
    search()
    ended.set()
    thread.join()
    print(f"{name}, peaks: " + ", ".join(f"{kind} {size / 1e6:.2f} GB" for kind, size in peaks.items()), flush=True)


def resume(count: int, place: Path) -> None:
    """Print how long the command takes that finds nothing left to do."""
    photos, out, settings = vary(place / "one", 1, (480, 640)), place / "finished", Propose()
    (only,) = photos.iterdir()
    content, row = only.read_bytes(), settings({"path": [str(only)]})
    for number in range(1, count):
        (photos / f"{number:06}.jpg").write_bytes(content)
    results = Results(Folder(str(out)), settings)
    results.open(resume=False, restart=False)
    results.manifest.add(photos_of([photos]), 200)
    parts = Parts(results, results.summary(), retry=False)
    for photo in parts.photos():
        parts.add(photo, row.set_column(0, "id", [[photo.id]]))
    size = sum(path.stat().st_size for path in out.rglob("*.parquet"))
    command = [sys.executable, "-m", "sharpmask.cli", "propose", photos, "--cluster", "ray", "--out", out, "--resume"]
    start = time.perf_counter()
    said = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout
    assert f"{count} rows" in said, said
    print(f"resume of {count} finished photos ({size / count:.0f} bytes each): {time.perf_counter() - start:.1f} s")


def measure(options: argparse.Namespace) -> None:
    workers = options.workers
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        folder = vary(place / "photos", options.photos + WARM * workers, (480, 640))
        ways = {"plain": time_plain, "ray": time_ray}
        times: dict[str, list[float]] = {name: [] for name in ways}

        def run(name: str, turn: int) -> float:
            out = place / f"{name}-{turn}"
            out.mkdir()
            return ways[name](folder, out, workers)

        memory("plain processes", lambda: run("plain", -1), ["--plain"])
        memory("Ray", lambda: run("ray", -1), ["ray::Searcher", "bench.cluster --ray", *RAY_PARTS])
        for turn in range(options.rounds):
            for name in ways:
                times[name].append(run(name, turn))
            print(", ".join(f"{name} {own[-1]:.2f} s" for name, own in times.items()), flush=True)
        ratio = statistics.median(b / a for a, b in zip(times["plain"], times["ray"], strict=True))
        print(f"{options.photos} photos, {workers} workers: Ray takes {ratio:.3f} of the plain processes' time")
        resume(options.resume, place)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--resume", type=int, default=1000)
    for name in ("--plain", "--ray", "--out"):
        parser.add_argument(name, nargs="+" if name == "--plain" else None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plain:
        plain(options.plain, options.out)
    elif options.ray:
        on_ray(options.ray, options.out, options.workers)
    else:
        measure(options)


if __name__ == "__main__":
    main()
