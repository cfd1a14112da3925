"""Ctrl-C while modules are imported."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

INTERRUPTED = 130
"""The exit status after an interrupt, as shells have it."""


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
