"""Writing files so that a reader never sees an incomplete one, and folders that one run at a time writes to."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

from .errors import DataError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger("sharpmask")

LOCK = ".lock"
"""The file in an output folder that a run holds, and in which it says who it is. It goes when the run ends."""

NAME_BYTES = 255
"""The longest name that common file systems take, in bytes."""

_PART = re.compile(r"\..+\.(\d+)\.part")
_writing: set[Path] = set()  # parts that this process has open
_held: set[int] = set()  # descriptors of the locks that this process holds


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path to write to, which becomes ``path`` if the block ends without an error.

    A reader sees the old file or the whole new one, even if the program dies in between. The folder is created.
    Raises an ``OSError`` that names ``path`` where it cannot be written.
    """
    tail = f".{os.getpid()}.part"
    part = path.with_name(f".{short_name(path.name, spare=len(tail) + 1)}{tail}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _writing.add(part)
        yield part
        os.replace(part, path)
    except OSError as error:
        # A full disk is reported without a name, other errors with that of the part, which nobody asked for.
        if error.filename is None or error.filename == os.fspath(part):
            raise OSError(error.errno, error.strerror or str(error), os.fspath(path)) from error
        raise
    finally:
        with suppress(OSError):  # what went wrong before matters more
            part.unlink(missing_ok=True)
        _writing.discard(part)


def write_text(path: Path, pieces: str | Iterable[str]) -> None:
    """Write a text, or its pieces one after the other, to a file; see :func:`atomic`."""
    with atomic(path) as part, open(part, "w", encoding="utf-8") as file:
        file.writelines([pieces] if isinstance(pieces, str) else pieces)


def short_name(name: str, *, spare: int = 0) -> str:
    """``name``, or where it is too long for a file its beginning and a hash of the whole.

    The result leaves room for ``spare`` more bytes. The last suffix, if short, stays.
    """
    room = NAME_BYTES - spare
    if len(os.fsencode(name)) <= room:
        return name
    suffix = Path(name).suffix
    suffix = suffix if len(os.fsencode(suffix)) <= 16 else ""
    tail = f"-{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}{suffix}"
    beginning = os.fsencode(name)[: room - len(os.fsencode(tail))]
    return beginning.decode(errors="ignore") + tail


@contextmanager
def output_folder(folder: Path, *inner: str) -> Iterator[None]:
    """Keep other runs out of ``folder`` for as long as the block lasts.

    The folder is created, and goes if nothing was written to it. The kernel frees it if the process dies. Incomplete
    files that killed runs left in it, or in its folders ``inner``, are removed. Where the file system has no locks,
    that is logged and the block runs without one. Raises ``DataError`` if another run writes to the folder, and if it
    cannot be made or written to.
    """
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _take_lock(folder)
    except OSError as error:
        raise DataError(f"out: {folder} must be a folder to write to: {error.strerror}") from error
    try:
        for place in (folder, *(folder / name for name in inner)):
            remove_leftovers(place)
        yield
    finally:
        if descriptor in _held:  # A forked child has closed it.
            with suppress(OSError):
                (folder / LOCK).unlink(missing_ok=True)
            _held.discard(descriptor)
            os.close(descriptor)
            if made:
                with suppress(OSError):  # something has been written
                    folder.rmdir()


def _take_lock(folder: Path) -> int:
    """The descriptor of the folder's lock file, locked. Raises ``DataError`` if another run has it."""
    path = folder / LOCK
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if fcntl is None:
                raise OSError("no locks on this system")
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_still(descriptor, path):
                os.close(descriptor)  # Its holder removed it before we locked it.
                continue
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise DataError(
                f"out: {folder} is in use by another run ({holder}); let that end, or give another folder"
            ) from None
        except OSError as error:
            log.warning("%s: cannot be locked (%s), so nothing keeps a second run out", folder, error.strerror or error)
        _held.add(descriptor)
        with suppress(OSError):  # The lock holds without its holder's name.
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        return descriptor


def _is_still(descriptor: int, path: Path) -> bool:
    """Whether ``path`` names the open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _forget_locks() -> None:
    """Close the locks in a forked child, such as a loader of batches: it would hold them after its parent's death."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_locks)


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove the parts in ``folder``, or of one file there, whose writers are dead."""
    for path in folder.glob(f".{'*' if name is None else escape(name)}.*.part"):
        found = _PART.fullmatch(path.name)
        if found and path not in _writing and not _is_alive(int(found[1])):
            with suppress(OSError):
                path.unlink()


def _is_alive(pid: int) -> bool:
    """Whether another process of this machine has the number ``pid``."""
    if os.name != "posix":  # os.kill would end it there.
        return True
    if pid == os.getpid():  # As its own parts are known, this is an earlier process of the same number.
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # It belongs to somebody else.
        return True
    return True
