"""Ctrl-C while modules are imported, what is said after it, and SIGTERM."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

INTERRUPTED = 130
"""The exit status after an interrupt, as shells have it."""
TERMINATED = 143
"""The exit status of a run that was asked by SIGTERM to end, and has saved its state; as shells have it, too."""


@contextmanager
def interrupts_end_the_program(alone: bool = True) -> Iterator[None]:
    """Ctrl-C inside the block, where modules are imported, ends the program at once, unless it is not ``alone``.

    An exception would show where it struck, or be taken by the module for one of its own.
    """

    def end(*_: object) -> None:
        os.write(2, b"sharpmask: interrupted\n")
        os._exit(INTERRUPTED)

    old = signal.getsignal(signal.SIGINT)
    try:
        # Where Ctrl-C is ignored, as under nohup, it stays so.
        ours = alone and old is signal.default_int_handler and bool(signal.signal(signal.SIGINT, end))
    except ValueError:  # not in the main thread, which alone is interrupted
        ours = False
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, old)


@contextmanager
def terminations() -> Iterator[Callable[[], bool]]:
    """Inside the block SIGTERM ends nothing, and the function that is given tells whether it has come.

    So schedulers ask a program to end, some seconds before they kill it.
    """
    asked: list[int] = []
    try:
        old = signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    except ValueError:  # not in the main thread, which alone takes signals
        yield lambda: False
        return
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGTERM, old or signal.SIG_DFL)


def interrupted(argv: Sequence[str]) -> str:
    """The line for an interrupt of a command at work: it says how to go on, where results are kept one by one."""
    keeps = argv[:1] in (["propose"], ["eval"]) and not any(word.startswith(("--json", "--results")) for word in argv)
    if not keeps:
        return "sharpmask: interrupted"
    words = [word for word in argv if word != "--restart"]
    words += ["--resume"] * ("--resume" not in argv)
    command = shlex.join(["sharpmask", *words])
    # After "--" an option would be a photo, and a list of photos from standard input is read up.
    again = command.isprintable() and not {"-", "--"} & {*argv}
    how = command if again else "the same command with --resume"
    return f"sharpmask: interrupted; what was finished is kept, and this goes on: {how}"
