"""Which backends the caller prefers: :class:`use_backend`, and the environment variable ``SHARPMASK_BACKEND``.

torch.compile traces this module and guards on the attributes that are read; a ContextVar would break the graph.
"""

from __future__ import annotations

import os
import threading
from contextlib import AbstractContextManager, nullcontext

import torch

from . import checks, registry


class _Call:
    """One call of :class:`use_backend`, or one ``with`` statement of it."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.before: _Call | None = None
        """What holds in the process once this call has ended."""
        self.entered = False
        self.ended = False


class _Process:
    def __init__(self) -> None:
        names = map(str.strip, os.environ.get("SHARPMASK_BACKEND", "").split(","))
        self.latest = _Call(tuple(filter(None, names)))


class _Thread(threading.local):
    def __init__(self) -> None:  # runs in every thread
        self.calls: tuple[_Call, ...] = ()
        """The ``with`` statements that this thread is in, and the calls that it has made inside them."""


_process = _Process()
_thread = _Thread()
_LOCK = threading.Lock()
_KEPT = 64
"""Calls that are remembered in case that later ones end."""


class use_backend:
    """Prefer the backends ``names``, in that order, in the whole process; without names, choose automatically.

    A call holds until the next call; a ``with`` statement, until its end::

        use_backend("triton")
        with use_backend("reference"):
            ...

    In a thread with ``with`` statements of its own, the innermost of them holds, whatever other threads prefer. They
    may end in any order, in any thread. Raises ``ValueError`` for a name that is no backend.
    """

    def __init__(self, *names: str) -> None:
        for name in names:
            checks.choice("use_backend", name, registry.BACKENDS)
        self._calls = [_begin(names)]

    def __enter__(self) -> None:
        if self._calls[-1].entered or self._calls[-1].ended:
            self._calls.append(_begin(self._calls[-1].names))
        call = self._calls[-1]
        call.entered = True
        if call not in _thread.calls:
            _thread.calls = (*_thread.calls, call)

    def __exit__(self, *error: object) -> None:
        entered = [call for call in self._calls if call.entered and not call.ended]
        here = [call for call in entered if call in _thread.calls]  # none if another thread has entered
        _end((here or entered)[-1])
        self._calls = [call for call in self._calls if not call.ended] or self._calls[-1:]


def current() -> tuple[str, ...]:
    """The preferences in force, best first."""
    if _thread.calls:
        for call in reversed(_thread.calls):
            if not call.ended:
                return call.names
    return _live(_process.latest).names


def _live(call: _Call) -> _Call:
    while call.ended and call.before is not None:
        call = call.before
    return call


def _begin(names: tuple[str, ...]) -> _Call:
    call = _Call(names)
    with _lock():
        call.before = _live(_process.latest)
        _process.latest = call
        if not torch.compiler.is_compiling():
            _forget_before(call)
    if _thread.calls:
        _thread.calls = (*_thread.calls, call)
    return call


def _forget_before(call: _Call) -> None:
    for _ in range(_KEPT):
        if call.before is None:
            return
        call.before = _live(call.before)
        call = call.before
    call.before = None


def _end(call: _Call) -> None:
    """End a ``with`` statement, and the calls that this thread has made inside it."""
    call.ended = True
    inside = False
    for other in _thread.calls:
        inside = other is call or (inside and not other.entered)
        other.ended = other.ended or inside
    _thread.calls = tuple([other for other in _thread.calls if not other.ended])
    with _lock():
        _process.latest = _live(_process.latest)


def _lock() -> AbstractContextManager[object]:
    return nullcontext() if torch.compiler.is_compiling() else _LOCK
