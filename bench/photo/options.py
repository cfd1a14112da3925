"""The options of ``python -m bench.photo``."""

from __future__ import annotations

import argparse
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from .before import COMMIT, default_cache
from .contenders import CONTENDERS, DEFAULT

HISTORY = Path(__file__).parents[1] / "history" / "photo.csv"


def positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError
    return number


def parse(arguments: Sequence[str] | None, description: str) -> Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.photo",
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_what(parser)
    add_output(parser)
    options = parser.parse_args(arguments)
    if options.small:
        options.size, options.counts, options.rounds = (96, 128), [5, 10], 1
        options.models, options.threads = ["shipped"], [1]
    if options.all:
        options.sam, options.deepmask, options.many = [16, 32], True, 100
    for name in ("counts", "threads"):
        setattr(options, name, sorted(getattr(options, name)))
    options.size, options.contender = tuple(options.size), options.contender or list(DEFAULT)
    return options


def add_what(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--models", nargs="*", choices=["shipped", "base", "ResNet-50"], default=["shipped", "ResNet-50"], help="models"
    )
    add("--counts", nargs="+", type=positive, default=[100, 1000], metavar="N", help="windows to refine")
    add("--threads", nargs="+", type=positive, default=[1, 2], help="CPU threads")
    add("--size", nargs=2, type=positive, default=[480, 640], metavar=("H", "W"), help="of the photo")
    add("--rounds", type=positive, default=4, help="turns of each with the most threads; with fewer, half as many")
    add("--contender", choices=list(CONTENDERS), action="append", help="only these; may be repeated")
    add("--before", default=COMMIT, metavar="COMMIT", help="an earlier commit to compare with, or none")
    add("--cache", type=Path, default=default_cache(), help="folder for the earlier commit's compiled kernels")
    add("--sam", nargs="*", type=int, choices=[16, 32], default=[], help="also Segment Anything, points a side")
    add("--deepmask", action="store_true", help="also the original DeepMask")
    add("--many", type=int, default=0, metavar="COUNT", help="also propose on so many photos, against a plain loop")
    add("--many-rounds", type=positive, default=2, help="turns of each on many photos")
    add(
        "--photos", type=Path, metavar="FOLDER", help="the photos for --many; without it, variants of the package's own"
    )
    add("--all", action="store_true", help="the same as --sam 16 32 --deepmask --many 100")
    add("--small", action="store_true", help="a tiny photo, one round, one thread: to try the bench")


def add_output(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--markdown", action="store_true", help="print Markdown tables")
    add("--save", type=Path, metavar="JSON", help="keep the results in this file")
    add("--load", type=Path, nargs="+", metavar="JSON", help="measure nothing: take the results from these files")
    add("--plot", type=Path, metavar="FILE", help="draw the times; needs matplotlib")
    add("--docs", action="store_true", help="write the results into docs/photo-speed.md and README.md")
    add("--record", type=Path, nargs="?", const=HISTORY, metavar="CSV", help="append to the history, or to this file")
