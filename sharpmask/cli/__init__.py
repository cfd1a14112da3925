"""The command line: ``sharpmask demo | propose | eval | train | ...``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

# Little is imported here: an interrupt is told in one line from the first moment on.
from .interrupts import INTERRUPTED, interrupted, interrupts_end_the_program


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the ``sharpmask`` command, whose arguments are ``argv``, or without it the program's own.

    Returns the exit status: 0, or 1 if a photo failed, 2 for an error, 130 after an interrupt.
    """
    alone = argv is None  # and not called by a program that outlives an interrupt
    with interrupts_end_the_program(alone):
        from .output import steady_output, tell_error
    failures: list[OSError] = []
    try:
        with steady_output(failures):
            return _run(sys.argv[1:] if argv is None else argv, alone)
    finally:
        if failures:
            tell_error(f"the output cannot be written: {failures[0].strerror}")
            raise SystemExit(2)


def _run(argv: Sequence[str], alone: bool) -> int:
    """Carry out a command line. Returns the exit status."""
    from ..errors import is_out_of_memory
    from .output import ERR, say, tell_error

    try:
        with interrupts_end_the_program(alone):
            from .program import prepare

            command = prepare(argv)
        return command()
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise
        tell_error(error)
        return 2
    except KeyboardInterrupt:
        say(interrupted(argv), ERR)
        return INTERRUPTED
