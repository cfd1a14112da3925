"""Where the page is: an address of this computer alone."""

from __future__ import annotations

import os
import socket
from typing import Final

from ..errors import DataError
from ..packages import check

HOST: Final = "127.0.0.1"
"""Other computers cannot reach it."""


def listen(port: int) -> socket.socket:
    """A socket that listens at ``port``, or for 0 at a free one.

    Raises ``DataError`` for a port that cannot be had, and without the packages that the page needs.
    """
    for package in ("starlette", "uvicorn"):
        check(package, "app", "app")
    try:
        return socket.create_server((HOST, port))
    except OSError as error:
        why = os.strerror(error.errno or 0)  # its own text tells the address again
        raise DataError(f"port must be one that is free, got {port} ({why}); --port 0 takes any") from error


def url_of(listening: socket.socket) -> str:
    """The page's address."""
    return f"http://{HOST}:{listening.getsockname()[1]}/"
