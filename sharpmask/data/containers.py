"""PNG, JPEG and AVIF files without metadata, of which Pillow refuses some that have nothing to do with the pixels."""

from __future__ import annotations

import io
import re
import struct
from typing import Any, BinaryIO, Final, NamedTuple

PNG: Final = b"\x89PNG\r\n\x1a\n"
JPEG: Final = b"\xff\xd8\xff"
DRAWN: Final = "sharpmask: a drawing, not a photo"
"""The comment in pictures that this package draws, by which they are told from photos."""
_MAX_HEAD: Final = 2**20
_PNG_PIXELS: Final = (b"IHDR", b"PLTE", b"tRNS")  # all that matters for the pixels, besides IDAT
# An entry of the table of items: version and flags, the item's number, its protection, its type.
_EXIF_ITEM: Final = re.compile(rb"(infe(?:\x02.{5}|\x03.{7})..)Exif", re.DOTALL)
_APP0, _APP1, _APP14, _APP15, _COMMENT, _SCAN = 0xE0, 0xE1, 0xEE, 0xEF, 0xFE, 0xDA


class Parts(NamedTuple):
    """What a file consists of for us: its header without metadata, where its pixels lie, and two things besides."""

    head: bytes
    start: int
    """Of the compressed pixels, in the file."""
    end: int | None
    """None for the file's end."""
    exif: bytes
    drawn: bool
    """Whether the file says that this package drew it."""

    def joined(self, file: BinaryIO) -> BinaryIO:
        """Header and pixels as one file to read. It reads from ``file``, which must stay open."""
        return io.BufferedReader(_Joined(self, file), 2**16)


def parts_of(file: BinaryIO) -> Parts | None:
    """The parts of a PNG or JPEG file; None for one of another kind, or whose structure is damaged."""
    file.seek(0)
    start = file.read(8)
    try:
        if start == PNG:
            return _png(file)
        return _jpeg(file) if start.startswith(JPEG) else None
    except struct.error:  # the file ends early
        return None


def without_exif(file: BinaryIO) -> BinaryIO:
    """An AVIF file with its EXIF hidden, because a damaged one stops the decoder; a file of another kind as it is.

    How to turn the picture is told elsewhere in such a file.
    """
    file.seek(0)
    if file.read(12)[4:] not in (b"ftypavif", b"ftypavis"):
        return file
    file.seek(0)
    return io.BytesIO(_EXIF_ITEM.sub(rb"\1free", file.read(), count=1))


def _png(file: BinaryIO) -> Parts | None:
    head, exif, drawn = bytearray(PNG), b"", False
    start = end = 0
    while len(header := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", header)
        data, after = file.tell(), file.tell() + length + 4
        if kind == b"IDAT":
            start = start or data - 8
            end = after if end in (0, data - 8) else end
        elif kind in _PNG_PIXELS and not start:
            if len(head) + length > _MAX_HEAD:
                return None
            head += header + file.read(length + 4)
        elif kind == b"eXIf":
            exif = exif or file.read(min(length, 2**16))
        elif kind == b"tEXt" and not start:
            drawn |= file.read(min(length, 200)) == b"Software\0" + DRAWN.encode()
        elif kind == b"IEND":
            break
        file.seek(after)
    return Parts(bytes(head), start, end, exif, drawn) if start else None


def _jpeg(file: BinaryIO) -> Parts | None:
    head, exif, drawn = bytearray(JPEG[:2]), b"", False
    file.seek(2)
    while True:
        start = file.tell()
        (mark, code) = struct.unpack("2B", file.read(2))
        while mark == code == 0xFF:  # padding
            (code,) = struct.unpack("B", file.read(1))
        (length,) = struct.unpack(">H", file.read(2))
        # Without a length there are only markers that do not belong into a header.
        if mark != 0xFF or length < 2 or code in (0x01, *range(0xD0, 0xDA)):
            return None
        if code == _SCAN:
            return Parts(bytes(head), start, None, exif, drawn)
        data = file.read(length - 2)
        if code == _APP1 and data.startswith(b"Exif\0\0"):
            exif = exif or data
        drawn |= code == _COMMENT and data == DRAWN.encode()
        if _matters(code, data):
            head += struct.pack(">2BH", 0xFF, code, length) + data
        if len(head) > _MAX_HEAD:
            return None


def _matters(code: int, data: bytes) -> bool:
    """Whether a JPEG segment can change pixels: two of the application's say how colours are stored."""
    if _APP0 <= code <= _APP15 or code == _COMMENT:
        jfif = code == _APP0 and data.startswith(b"JFIF\0") and len(data) >= 14
        return jfif or (code == _APP14 and data.startswith(b"Adobe") and len(data) >= 12)
    return True


class _Joined(io.RawIOBase):
    """The bytes ``parts.head``, then those of ``file`` from ``parts.start`` to ``parts.end``."""

    def __init__(self, parts: Parts, file: BinaryIO) -> None:
        self.parts, self.file, self.place = parts, file, 0
        end = file.seek(0, io.SEEK_END)
        self.size = len(parts.head) + max(0, min(end, end if parts.end is None else parts.end) - parts.start)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.size}[whence]
        self.place = max(0, base + offset)
        return self.place

    def readinto(self, buffer: Any) -> int:
        head = self.parts.head
        if self.place < len(head):
            data = head[self.place : self.place + len(buffer)]
        else:
            self.file.seek(self.parts.start + self.place - len(head))
            data = self.file.read(max(0, min(len(buffer), self.size - self.place)))
        buffer[: len(data)] = data
        self.place += len(data)
        return len(data)
