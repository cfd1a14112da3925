"""An object store of this process: as much of the S3 protocol as s3fs needs for files of one piece."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

DATE = "2026-01-01T00:00:00.000Z"


class Handler(BaseHTTPRequestHandler):
    """Objects by bucket/key in ``server.objects``; buckets are there when they are named."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        key, query = self._asked()
        if "/" not in key.rstrip("/"):
            self._list(key.rstrip("/"), query)
        elif key in self._objects:
            content = self._objects[key]
            start, _, end = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
            piece = content[int(start) : int(end) + 1 if end else None]
            self._answer(206 if "Range" in self.headers else 200, piece)
        else:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")

    def do_HEAD(self) -> None:
        key, _ = self._asked()
        self._answer(200 if key in self._objects else 404, self._objects.get(key, b""))

    def do_PUT(self) -> None:
        key, _ = self._asked()
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "aws-chunked" in self.headers.get("Content-Encoding", ""):
            content = _chunks(content)
        self._objects[key] = content
        self._answer(200)

    def do_DELETE(self) -> None:
        self._objects.pop(self._asked()[0], None)
        self._answer(204)

    def _list(self, bucket: str, query: dict[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        files, folders = [], set()
        for key in sorted(self._objects):
            name = key.removeprefix(f"{bucket}/")
            if name == key or not name.startswith(prefix):
                continue
            head, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            if found:
                folders.add(prefix + head + found)
            else:
                files.append((name, len(self._objects[key])))
        contents = "".join(
            f"<Contents><Key>{escape(name)}</Key><Size>{size}</Size><LastModified>{DATE}</LastModified>"
            f'<ETag>"{size}"</ETag></Contents>'
            for name, size in files
        )
        common = "".join(f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in folders)
        self._answer(200, f"<ListBucketResult><Name>{bucket}</Name>{contents}{common}</ListBucketResult>".encode())

    def _asked(self) -> tuple[str, dict[str, str]]:
        address = urlsplit(self.path)
        query = parse_qs(address.query, keep_blank_values=True)
        return unquote(address.path).lstrip("/"), {name: values[0] for name, values in query.items()}

    def _answer(self, status: int, content: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.send_header("ETag", f'"{len(content)}"')
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass

    @property
    def _objects(self) -> dict[str, bytes]:
        return self.server.objects  # type: ignore[attr-defined,no-any-return]


def _chunks(content: bytes) -> bytes:
    """The content of an upload in chunks, each after a line with its size in hexadecimal digits."""
    whole = b""
    while True:
        line, _, content = content.partition(b"\r\n")
        size = int(line.partition(b";")[0], 16)
        if not size:
            return whole
        whole, content = whole + content[:size], content[size + 2 :]


@contextmanager
def serving() -> Iterator[str]:
    """The address of a store, for as long as the block lasts."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.objects = {}  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
