"""The command line: ``sharpmask demo | propose | eval | synth | pack | convert | train``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from ..errors import DataError
from .arguments import parse_arguments
from .options import OPTIONS, STAGES


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the ``sharpmask`` command. Returns the exit status."""
    try:
        name, rest = split_command(sys.argv[1:] if argv is None else argv)
        return run(name, rest)
    except (ValueError, OSError) as error:
        print("sharpmask:", *str(error).split(), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("sharpmask: interrupted", file=sys.stderr)
        return 130


def split_command(argv: Sequence[str]) -> tuple[str, list[str]]:
    """The command's name, of one or two words, and its arguments.

    Prints the list of commands and exits if there are no arguments or help is asked for. Raises ``DataError`` for
    an unknown command.
    """
    known = [*OPTIONS, *(f"train {stage}" for stage in STAGES)]
    for words in (1, 2):
        name = " ".join(argv[:words])
        if name in known:
            return name, list(argv[words:])
    asked = not argv or argv[0] in ("-h", "--help") or (argv[:1] == ["train"] and argv[1:2] in ([], ["-h"], ["--help"]))
    if not asked:
        raise DataError(f"command must be one of {', '.join(known)}, got {' '.join(argv[:2])!r}")
    print_commands()
    raise SystemExit(0)


def print_commands() -> None:
    """List all commands with what each does."""
    table = Table("command", "what it does", box=None, pad_edge=False)
    for name in OPTIONS:
        table.add_row(f"sharpmask {name}", (OPTIONS[name].__doc__ or "").splitlines()[0])
    for stage, text in STAGES.items():
        table.add_row(f"sharpmask train {stage}", text)
    Console().print(table, "\nsharpmask COMMAND --help lists its options.")


def run(name: str, argv: list[str]) -> int:
    """Parse a command's arguments and carry it out. Returns the exit status.

    Prints help and usage errors itself and exits, as command lines do.
    """
    # Each command's module is imported only when it runs: searching a photo must not load the training loop.
    if name.startswith("train "):
        from . import train

        return train.train(train.parse(name.removeprefix("train "), argv))
    options = parse(name, argv)
    if name == "eval":
        from .evaluate import evaluate

        return evaluate(options)
    from . import commands

    return int(getattr(commands, name)(options))


def parse(name: str, argv: list[str]) -> Any:
    """The options of a command other than training."""
    return parse_arguments(OPTIONS[name], argv, prog=f"sharpmask {name}", description=OPTIONS[name].__doc__)
