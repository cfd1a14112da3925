"""OpenVINO's core."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import openvino


@cache
def core() -> openvino.Core:
    """The one core of this process, which is never let go.

    With its CPU plugin, every core gives the thread that makes it a stack for signals, and unmaps that when it goes.
    Of two cores, the one that goes last puts back the stack of the other, which may be gone. The next signal, such as
    Ctrl-C, then ends the process without a word (findings/openvino_core_signal_stack.sh).
    """
    import openvino

    found = openvino.Core()
    found.get_property("CPU", "FULL_DEVICE_NAME")  # loads the plugin before other libraries' cores load theirs
    return found
