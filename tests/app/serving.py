"""A page that is served while a test runs, and what asks it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sharpmask import ProposalGenerator
from sharpmask.app.address import listen, url_of
from sharpmask.app.server import server_of


@contextmanager
def served(generator: ProposalGenerator, folder: Path) -> Iterator[str]:
    """The address of a page."""
    with listen(0) as listening:
        server = server_of(generator, folder)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield url_of(listening)
        finally:
            server.should_exit = True
            thread.join()


def ask(
    url: str, path: str, body: bytes | dict[str, Any] | None = None, headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    """The status and the content of an answer: to a GET, or with a ``body`` to a POST."""
    connection = HTTPConnection(urlsplit(url).netloc, timeout=60)
    content = json.dumps(body).encode() if isinstance(body, dict) else body
    try:
        connection.request("GET" if content is None else "POST", path, content, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()
