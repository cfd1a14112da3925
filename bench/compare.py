"""``python -m bench.compare``: how much faster than plain PyTorch, from interleaved runs.

All contestants of a workload take turns, A B C A B C ..., so that whatever else the machine does hits all of them
alike. The table has the median time of eager PyTorch, and of the others the median over the rounds of eager PyTorch's
time divided by theirs: 2.00 is twice as fast.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from argparse import Namespace
from collections.abc import Sequence

from sharpmask_kernels import env, registry

from . import headline
from .measure import WrongResult, trace
from .options import Case, add_options, cases, header, setting
from .peers import PEERS
from .timing import cell, interleaved, milliseconds


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.compare",
        description=__doc__.partition("\n\n")[2],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_options(parser.add_argument)
    parser.add_argument("--op", choices=registry.OPS, action="append", help="only this op; may be repeated")
    parser.add_argument("--headline", action="store_true", help="ours against the best of all peers; see headline.py")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each")
    parser.add_argument("--markdown", action="store_true", help="print Markdown tables")
    options = parser.parse_args(arguments)
    if options.headline:
        return print_headline(options)

    found = [case for case in cases(options) if case.workload.op in (options.op or registry.OPS)]
    print(env.table(header(options, found).items()), flush=True)
    layout = markdown if options.markdown else env.table
    for op, group in itertools.groupby(found, lambda case: case.workload.op):
        try:
            rows = table(list(group), options)
        except WrongResult as problem:
            print(f"\nerror: {problem}", file=sys.stderr)
            return 1
        print(f"\n{op}, {options.dtype}: speed relative to eager, ± half the interquartile range\n")
        print(layout(rows), flush=True)
    return 0


def print_headline(options: Namespace) -> int:
    """Row by row, as it takes long."""
    options.threads = options.threads or 2
    options.peer = options.peer or list(PEERS)
    print(env.table(header(options, cases(options)).items()), "\n", flush=True)
    try:
        for i, row in enumerate(headline.table(options)):
            print("\n".join(markdown([row]).splitlines()[: 1 + (i == 0)]), flush=True)
        if not options.op:
            print("\n" + markdown(headline.training_table(options)), flush=True)
    except WrongResult as problem:
        print(f"\nerror: {problem}", file=sys.stderr)
        return 1
    print("\n" + markdown(headline.memory_table(options)))
    return 0


def table(cases: list[Case], options: Namespace) -> list[list[str]]:
    """One row for each workload of an op."""
    columns = list(dict.fromkeys(contestant.name for case in cases for contestant in case.contestants))
    rows = [["", *columns]]
    for case in cases:
        ready = setting(case, options)
        runs = {c.name: ready.runner(c, first) for first, c in enumerate(case.contestants)}
        times = dict(zip(runs, interleaved(list(runs.values()), options.rounds), strict=True))
        eager = next(iter(times.values()))
        rest = (cell(eager / times[name]) if name in times else "-" for name in columns[1:])
        rows.append([ready.name.partition(" ")[2], milliseconds(eager), *rest])
        if options.profile:
            for name, run in runs.items():
                trace(run, options.profile, f"{ready.name} {name}")
    return rows


def markdown(rows: list[list[str]]) -> str:
    first, *others = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([first, "|---" * len(rows[0]) + "|", *others])


if __name__ == "__main__":
    sys.exit(main())
