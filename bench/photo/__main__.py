"""How long a whole photo takes, and how much memory, beside an earlier commit, other ways to run the model, and SAM.

Each contender has a process of its own. All of them take turns, A B C A B C ..., and what they find is compared with
plain PyTorch's first; a wrong result stops the run. Times are medians of the rounds.
"""

from __future__ import annotations

import sys
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from sharpmask_kernels import env

from ..measure import WrongResult
from ..pages import markdown
from ..record import WrongHeader
from . import history, many, report, tables
from .contenders import DEEPMASK, sam
from .machine import describe
from .options import parse
from .plot import draw
from .process import Failed
from .results import Results
from .turns import Ring, contenders, say


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments, __doc__ or "")
    try:
        if options.load:
            results, *others = map(Results.read, options.load)
            for other in others:
                results.add(other)
        else:
            results = Results(describe(), options.size)
            say(report.head(results))
            if options.record:
                history.check(options.record)
            measure(options, results)
        show(options, results)
    except (WrongResult, WrongHeader, Failed, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    return 0


def measure(options: Namespace, results: Results) -> None:
    most = max(options.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for model in options.models:
            for threads in options.threads:
                rounds = options.rounds if threads == most else (options.rounds + 1) // 2
                ring = Ring(options, results, model, threads, folder)
                ring.measure(list(contenders(options, threads)), options.counts, rounds)
                if options.save:
                    results.write(options.save)  # what a stopped run has measured
        if options.deepmask:
            count = options.counts[-1:]
            Ring(options, results, "original DeepMask", most, folder).measure([DEEPMASK], count, 0)
        for side in options.sam:
            say(f"Segment Anything with {side}x{side} points: some minutes on few cores")
            Ring(options, results, "SAM", most, folder).measure([sam(side)], [side * side], 0)
    if options.many or options.photos:
        many.measure(options, results)


def show(options: Namespace, results: Results) -> None:
    """Prints the results and writes what was asked for."""
    layout = markdown if options.markdown else env.table
    print("\n".join(f"{name}: {value}" for name, value in results.head.items()))
    for title, rows in tables.sections(results).items():
        print(f"\n{title}\n\n{layout(rows)}")
    for note in results.notes:
        print(f"\n{note}")
    if options.save:
        results.write(options.save)
    if options.plot:
        draw(results, options.plot)
    if options.record and not options.load:
        history.add(options.record, results)
    if options.docs:
        report.write(results)


if __name__ == "__main__":
    sys.exit(main())
