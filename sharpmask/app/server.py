"""What the page asks for: a photo's masks, masks for clicks, files to download. Answers and errors are JSON."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import sys
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..data.images import MAX_PIXELS
from ..errors import DataError, one_line
from ..search import ProposalGenerator
from .downloads import KINDS
from .photos import OpenPhoto, OpenPhotos

LARGEST_FILE: Final = 8 * MAX_PIXELS
"""Bytes of a photo: those of the largest that is read, in four channels of 16 bits."""
LARGEST_QUESTION: Final = 1 << 20
"""Bytes of any other request."""
OWN_NAMES: Final = ("127.0.0.1", "localhost")
HEADERS: Final = {
    # The page loads nothing from elsewhere, and nobody shows it inside another page.
    "content-security-policy": "default-src 'self'; frame-ancestors 'none'; form-action 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


class OnlyThePage:
    """Refuses what other sites' pages in the same browser ask for, by their own name or by one that they redirect."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if (
            host.partition(":")[0].lower() not in OWN_NAMES
            or headers.get("origin", f"http://{host}") != f"http://{host}"
        ):
            return await refusal("only the page itself may ask", 403)(scope, receive, send)
        return await self._app(scope, receive, with_headers)


class Page:
    """Answers the page's requests."""

    def __init__(self, generator: ProposalGenerator, folder: Path) -> None:
        self._photos = OpenPhotos(generator, folder)

    async def open(self, request: Request) -> Response:
        """The body is a photo's file, and ``name`` what errors and results call it."""
        name = Path(request.query_params.get("name", "")).name or "photo"
        path = self._photos.new_file()
        try:
            await receive_file(request, path, name)
        except BaseException:
            shutil.rmtree(path.parent, ignore_errors=True)
            raise
        key, photo = await run_in_threadpool(self._photos.open, path, name)
        (height, width), (rows, cols) = photo.found.size, photo.view_size
        sizes = {"size": {"width": width, "height": height}, "view": {"width": cols, "height": rows}}
        masks = await run_in_threadpool(photo.described)
        return JSONResponse({"key": key, "name": name, **sizes, "masks": masks})

    def view(self, request: Request) -> Response:
        return Response(self._photo(request).view.getvalue(), media_type="image/jpeg")

    async def answer(self, request: Request) -> Response:
        """Masks for ``points`` with ``labels``, ``box``, or both."""
        photo, asked = self._photo(request), await question(request)

        def masks() -> list[dict[str, Any]]:
            with self._photos.lock:
                return photo.answer(asked.get("points"), asked.get("labels"), asked.get("box"))

        return JSONResponse({"masks": await run_in_threadpool(masks)})

    async def download(self, request: Request) -> Response:
        """A file of the kind that the path names, of the ``masks`` with some ids."""
        photo, asked = self._photo(request), await question(request)
        found = photo.chosen(asked.get("masks"))
        folder = Path(tempfile.mkdtemp(dir=photo.path.parent))
        done = BackgroundTask(shutil.rmtree, folder, ignore_errors=True)
        try:
            file = await run_in_threadpool(KINDS[request.url.path.rpartition("/")[2]], found, photo.name, folder)
        except BaseException:
            await done()
            raise
        return FileResponse(file, background=done)

    def _photo(self, request: Request) -> OpenPhoto:
        try:
            return self._photos.get(request.path_params["key"])
        except KeyError:
            raise DataError("this photo is no longer open, since others came after it: drop it again") from None


async def receive_file(request: Request, path: Path, name: str) -> None:
    """Write the body to a file. Raises ``DataError`` for one that is empty or too large."""
    size = 0
    with open(path, "wb") as file:
        # All of it is taken even if it is too large: browsers tell no answer before they have sent everything.
        async for chunk in request.stream():
            size += len(chunk)
            if size <= LARGEST_FILE:
                await run_in_threadpool(file.write, chunk)
    if not 0 < size <= LARGEST_FILE:
        raise DataError(f"{one_line(name)}: a photo must have 1 to {LARGEST_FILE} bytes, got {size}")


async def question(request: Request) -> dict[str, Any]:
    """The body as a JSON object. Raises ``DataError`` for anything else."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST_QUESTION:
            raise DataError(f"a request must have at most {LARGEST_QUESTION} bytes")
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        asked = None
    if not isinstance(asked, dict):
        raise DataError("a request must be a JSON object")
    return asked


def refusal(text: str, status: int = 422) -> Response:
    return JSONResponse({"error": text}, status)


def refuse(_: Request, error: Exception) -> Response:
    """What cannot be used."""
    return refusal(" ".join(str(error).split()))


def fail(_: Request, error: Exception) -> Response:
    """What went wrong here, such as memory or a disk that does not suffice. The server prints where, and goes on."""
    return refusal(" ".join(f"this failed: {error or type(error).__name__}".split())[:300], 500)


def page_of(generator: ProposalGenerator, folder: Path) -> Starlette:
    """The page, whose photos are searched as ``generator`` does and kept in ``folder`` while they are open."""
    page = Page(generator, folder)
    return Starlette(
        routes=[
            Route("/photos", page.open, methods=["POST"]),
            Route("/photos/{key}/view", page.view),
            Route("/photos/{key}/masks", page.answer, methods=["POST"]),
            *(Route(f"/photos/{{key}}/{kind}", page.download, methods=["POST"]) for kind in KINDS),
            Mount("/", StaticFiles(directory=str(files("sharpmask.app") / "page"), html=True)),
        ],
        middleware=[Middleware(OnlyThePage)],
        exception_handlers={ValueError: refuse, Exception: fail},
    )


def serve(generator: ProposalGenerator, listening: socket.socket) -> None:
    """Serve the page on a listening socket until the program is interrupted."""
    for name in ("SIGTERM", "SIGHUP"):  # by themselves they would leave the photos' files
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda number, _: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="sharpmask-app-") as folder:
        server_of(generator, Path(folder)).run(sockets=[listening])


def server_of(generator: ProposalGenerator, folder: Path) -> uvicorn.Server:
    config = uvicorn.Config(
        page_of(generator, folder), log_level="warning", lifespan="off", timeout_graceful_shutdown=2
    )
    return uvicorn.Server(config)
