#!/usr/bin/env bash
# openvino 2026.4.1: a core that is let go can take along the stack on which its thread handles signals.
#
# Expected: a program that makes and drops `openvino.Core` objects handles signals afterwards as it did before.
# Behaviour: with its CPU plugin, a core registers an alternative signal stack for the thread that makes it. When it goes,
# it puts the stack back that was registered before, if its own is still in place, and unmaps its own. So of two cores, of
# which the first goes first, the second puts the first one's stack back, which is no longer there; and a core that
# goes in another thread than it was made in (as one that Python's garbage collector finds) leaves its own. Python
# asks for the alternative stack in all its signal handlers, so the next signal that the program handles, such as Ctrl-C
# or the end of a child process where PyTorch's loader of batches listens for that, ends it with a segmentation
# fault that not even faulthandler can report. Make one core and keep it.
#
# Seen: "at first: there, two cores that ended in their order: gone, a core that ended in another thread: gone, a core
# that is kept, and a second one: there". Nothing is signalled here.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet openvino==2026.4.1
"$work/venv/bin/python" -X faulthandler - <<'PYTHON'
import ctypes
import gc
import threading

import openvino


class Stack(ctypes.Structure):
    _fields_ = [("begin", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


def state():
    gc.collect()
    stack = Stack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack)) == 0
    with open("/proc/self/maps") as file:
        ranges = [line.split()[0].split("-") for line in file]
    return "there" if any(int(a, 16) <= (stack.begin or 0) < int(b, 16) for a, b in ranges) else "gone"


def core():
    found = openvino.Core()
    found.get_property("CPU", "FULL_DEVICE_NAME")  # loads the plugin
    return found


seen = {"at first": state()}
first, second = core(), core()
del first
del second
seen["two cores that ended in their order"] = state()

held = [core()]
thread = threading.Thread(target=held.clear)
thread.start()
thread.join()
seen["a core that ended in another thread"] = state()

kept = core()
second = core()
del second
seen["a core that is kept, and a second one"] = state()

print(", ".join(f"{name}: {what}" for name, what in seen.items()))
assert list(seen.values()) == ["there", "gone", "gone", "there"]
PYTHON
