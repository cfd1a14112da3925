"""``python -m bench.compare``: how much faster than plain PyTorch, from interleaved runs.

All contestants of a workload take turns, A B C A B C ..., so that other work on the machine slows all of them alike.
The table has the median time of eager PyTorch. Of the others it has the median, over the rounds, of eager PyTorch's
time divided by theirs: 2.00 is twice as fast.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from sharpmask_kernels import env, registry

from . import headline, memory, second_stage
from .comparison import Comparison, compared
from .measure import WrongResult, trace
from .options import Case, add_options, cases, header, setting
from .peers import PEERS
from .record import HISTORY, Recorder, WrongHeader
from .timing import cell, interleaved, milliseconds


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.headline:
        options.threads = options.threads or 2
        options.peer = options.peer or list(PEERS)
    found = cases(options)
    if not options.headline:
        found = [case for case in found if case.workload.op in (options.op or registry.OPS)]
    print(env.table(header(options, found).items()), flush=True)
    try:
        recorder = Recorder(options.record, options) if options.record else None
        if options.headline:
            print_headline(options, recorder)
        else:
            print_tables(found, options, recorder)
    except (WrongResult, WrongHeader) as problem:
        print(f"\nerror: {problem}", file=sys.stderr)
        return 1
    return 0


def parse(arguments: Sequence[str] | None) -> Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.compare",
        description=__doc__.partition("\n\n")[2],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_options(parser.add_argument)
    parser.add_argument("--op", choices=registry.OPS, action="append", help="only this op; may be repeated")
    parser.add_argument("--headline", action="store_true", help="ours against the best of all peers")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each")
    parser.add_argument("--markdown", action="store_true", help="print Markdown tables")
    parser.add_argument(
        "--record", type=Path, nargs="?", const=HISTORY, metavar="CSV", help=f"append to {HISTORY.name}, or to this"
    )
    return parser.parse_args(arguments)


def print_tables(cases: list[Case], options: Namespace, recorder: Recorder | None) -> None:
    """A table for each op."""
    layout = markdown if options.markdown else env.table
    for op, group in itertools.groupby(cases, lambda case: case.workload.op):
        comparisons = [measured(case, options) for case in group]
        print(f"\n{op}, {options.dtype}: speed relative to eager, ± half the interquartile range\n")
        print(layout(table(comparisons)), flush=True)
        if recorder:
            recorder.add(*comparisons)


def measured(case: Case, options: Namespace) -> Comparison:
    ready = setting(case, options)
    runs = {c.name: ready.runner(c, first) for first, c in enumerate(case.contestants)}
    times = dict(zip(runs, interleaved(list(runs.values()), options.rounds), strict=True))
    if options.profile:
        for name, run in runs.items():
            trace(run, options.profile, f"{ready.name} {name}")
    return compared(case.workload, times, case.contestants)


def table(comparisons: list[Comparison]) -> list[list[str]]:
    """One row for each workload of an op."""
    columns = list(dict.fromkeys(name for comparison in comparisons for name in comparison.times))
    rows = [["", *columns]]
    for workload, times, *_ in comparisons:
        eager = next(iter(times.values()))
        others = (cell(eager / times[name]) if name in times else "-" for name in columns[1:])
        rows.append([workload.name.partition(" ")[2], milliseconds(eager), *others])
    return rows


def print_headline(options: Namespace, recorder: Recorder | None) -> None:
    """Prints row by row, because each takes long."""
    print("\n" + markdown([headline.HEADER]))
    for work, comparison in headline.comparisons(options):
        print(markdown([headline.cells(work, comparison)]).splitlines()[0], flush=True)
        if recorder:
            recorder.add(comparison)
    if not options.op:
        print("\n" + markdown(second_stage.table(options)), flush=True)
    print("\n" + markdown(memory.table(options)))


def markdown(rows: list[list[str]]) -> str:
    first, *others = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([first, "|---" * len(rows[0]) + "|", *others])


if __name__ == "__main__":
    sys.exit(main())
