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

import torch

from sharpmask_kernels import env, registry

from . import headline, isa, machine, memory, second_stage
from .comparison import Comparison, compared
from .measure import WrongResult, trace
from .options import Case, add_options, cases, header, setting
from .pages import ROOT, fill, markdown
from .peers import PEERS
from .record import HISTORY, Recorder, WrongHeader
from .roofline import Peak
from .timing import cell, interleaved, milliseconds

PARTS = ["ops", "second-stage", "memory"]
"""Of the headline."""

PAGE = ROOT / "docs" / "benchmarks.md"
"""Where ``--docs`` writes the headline."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.isa and not isa.held():
        return isa.run_held("bench.compare", sys.argv[1:] if arguments is None else arguments, options.isa)
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
    parser.add_argument("--part", choices=PARTS, action="append", help="of the headline; may be repeated")
    parser.add_argument("--isa", choices=isa.VARIABLES, help="hold everybody to this instruction set")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each")
    parser.add_argument("--markdown", action="store_true", help="print Markdown tables")
    parser.add_argument("--docs", action="store_true", help=f"write the headline into {PAGE.name}")
    parser.add_argument(
        "--record", type=Path, nargs="?", const=HISTORY, metavar="CSV", help=f"append to {HISTORY.name}, or to this"
    )
    return parser.parse_args(arguments)


def print_tables(cases: list[Case], options: Namespace, recorder: Recorder | None) -> None:
    """A table for each op."""
    layout = markdown if options.markdown else env.table
    for op, group in itertools.groupby(cases, lambda case: case.workload.op):
        comparisons = [measured(case, options) for case in group]
        conditions = machine.conditions(torch.device(options.device))
        print(f"\n{op}, {options.dtype}, {conditions}: speed relative to eager, ± half the interquartile range\n")
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
    return compared(case.workload, times, case.contestants, ready.cost)


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
    device = torch.device(options.device)
    peak, told = headline.peak(device)
    conditions = machine.conditions(device)
    told = f"{machine.summary(device)}; peak: {told}; {options.rounds} rounds."
    print(f"\n{told}", flush=True)
    parts, tables = options.part or (["ops", "memory"] if options.op else PARTS), []
    if "ops" in parts:
        tables.append(print_ops(options, recorder, conditions, peak))
    if "second-stage" in parts:
        tables.append(markdown(second_stage.table(options, conditions, peak)))
        print(f"\n{tables[-1]}", flush=True)
    if "memory" in parts:
        tables.append(markdown(memory.table(options, conditions)))
        print(f"\n{tables[-1]}")
    if options.docs:
        fill(PAGE, f"headline:{machine.processor(device)[1]}", "\n\n".join(["", told, *tables, ""]))


def print_ops(options: Namespace, recorder: Recorder | None, conditions: str, peak: Peak | None) -> str:
    """Prints row by row, because each takes long. Returns the table."""
    rows = [[conditions, *headline.HEADER]]
    print("\n" + markdown(rows))
    for work, comparison in headline.comparisons(options):
        rows.append(headline.cells(work, comparison, peak))
        print(markdown(rows).splitlines()[-1], flush=True)
        if recorder:
            recorder.add(comparison)
    return markdown(rows)


if __name__ == "__main__":
    sys.exit(main())
