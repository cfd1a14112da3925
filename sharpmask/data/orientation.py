"""The EXIF orientation of a photo: reading the tag alone, and turning pixels by it."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pixels: TypeAlias = NDArray[np.uint8]

Exif = Literal["turned", "stored"]
"""Which pixels of a photo are meant: ``turned`` by its EXIF orientation, as viewers show it, or as ``stored``."""

TAG: Final = 0x0112
_INTEGERS: Final = {1: "B", 3: "H", 4: "I"}  # TIFF's BYTE, SHORT and LONG
_TURNS: Final[Mapping[int, Callable[[Pixels], Pixels]]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[:, ::-1].swapaxes(0, 1),
}


def orientation_of(exif: bytes) -> int:
    """The orientation, 1 to 8, that an EXIF block states; 1 if it states none or is damaged.

    Only the tag itself is read: nothing else in the block can be wrong for it.
    """
    data = exif
    while data.startswith(b"Exif\0\0"):
        data = data[6:]
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    try:
        if order is None or struct.unpack_from(f"{order}H", data, 2)[0] != 42:
            return 1
        (start,) = struct.unpack_from(f"{order}I", data, 4)
        (count,) = struct.unpack_from(f"{order}H", data, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, length = struct.unpack_from(f"{order}HHI", data, entry)
            if tag == TAG:
                if kind not in _INTEGERS or length < 1:
                    return 1
                (value,) = struct.unpack_from(f"{order}{_INTEGERS[kind]}", data, entry + 8)
                return checked(value)
    except struct.error:  # the block ends early
        pass
    return 1


def checked(value: object) -> int:
    """``value`` where it is an orientation, otherwise 1."""
    return value if isinstance(value, int) and value in _TURNS else 1


def swaps_sides(orientation: int) -> bool:
    """Whether turning by ``orientation`` makes the height the width."""
    return orientation >= 5


def turned(pixels: Pixels, orientation: int) -> Pixels:
    """``pixels`` (h, w, ...) as a viewer shows them, contiguous; the same array for orientation 1."""
    import numpy as np  # here, because the command line needs only the names of what it may be given

    return np.ascontiguousarray(_TURNS[orientation](pixels))
