"""All that a GPU is needed for, in stages that write their report as they go.

prove: self-check, contract and the tests of streams, graphs and compilation. sanitize: compute-sanitizer on every
kernel. measure: every op beside PyTorch, torch.compile and TensorRT, and how near to what this GPU can do. photo: whole
photos. tune: the fastest configurations of the Triton kernels.

OUT/report.json and OUT/report.md are written after every step; a later run with the same OUT does what is left. The
exit status is 1 if a step failed or was stopped.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch

from . import ready
from .steps import NAMES, Plan


def main(arguments: Sequence[str] | None = None) -> int:
    started = time.monotonic()
    options = parse(arguments)
    if options.needs:
        print(ready.needs_table())
        return bool(ready.missing())
    # What these import may be missing where --needs is asked for.
    from ..record import HISTORY, WrongHeader
    from . import history
    from .report import Report
    from .run import Clock, Runner, say
    from .stages import STAGES

    if options.record is not None:
        try:
            path = Path(options.record or HISTORY)
            count = history.add(path, options.out / "report.json")
        except (WrongHeader, OSError) as problem:
            print(f"error: {problem}", file=sys.stderr)
            return 1
        print(f"{count} rows added to {path}")
        return 0
    chosen = [stage for stage in STAGES if stage.name in options.stage]
    options.out.mkdir(parents=True, exist_ok=True)
    report = Report(options.out, ready.head(options.rehearse), STAGES)
    if not options.rehearse:
        try:
            report.head["extension"] = ready.build()
        except (RuntimeError, OSError) as problem:
            report.head["extension"] = str(problem)  # Triton's kernels can be proven without it
        say(report.head["extension"])
    for stage in chosen:
        if options.again:
            report.forget(stage.name)
    clock = Clock(started + 60 * options.minutes)
    plan = Plan(options.rehearse, str(options.out.resolve()))
    for i, stage in enumerate(chosen):
        Runner(stage, plan, clock.share(stage, chosen[i + 1 :]), report).run()
    report.write()
    say(f"{report.markdown} and {report.json.name} written")
    for name in report.failed():
        say(f"failed: {name}")
    return bool(report.failed())


def parse(arguments: Sequence[str] | None) -> Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--stage", nargs="+", choices=NAMES, default=NAMES, help="only these; always in this order (default: all)")
    add("--minutes", type=float, default=15.0, metavar="M", help="for all of it (default: %(default)s)")
    add("--out", type=Path, default=Path("gpu-report"), metavar="FOLDER", help="default: %(default)s")
    add("--again", action="store_true", help="run these stages anew, also what is finished")
    add("--needs", action="store_true", help="only list what must be installed; exit status 1 if something is missing")
    add("--rehearse", action="store_true", help="on the CPU, at tiny sizes: to try the script, not the kernels")
    add(
        "--record", nargs="?", const="", metavar="CSV",
        help="only append what OUT has measured to the history of the bench, or to this",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if options.needs or options.record is not None:
        return options
    if lacking := ready.missing():
        parser.error(f"packages must be installed, missing are {', '.join(lacking)}; --needs lists them all")
    if not options.rehearse and not torch.cuda.is_available():
        parser.error("PyTorch finds no CUDA or ROCm device; --rehearse runs the stages on the CPU")
    return options


if __name__ == "__main__":
    # As Ctrl-C: what was started ends, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())
