"""What made a result: a record of the checkpoint, the version and all settings, and a short name for it.

Results of one fingerprint can be mixed, and a stopped run goes on from them. Of two records, a line says what differs.
PyTorch is not needed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from .errors import DataError
from .family import checkpoint_path
from .models.config import SearchConfig
from .plain import to_plain
from .ranges import shown
from .version import __version__

DIGITS: Final = 16
"""Hexadecimal digits of a fingerprint."""
LARGEST_HEADER: Final = 100_000_000  # bytes, of a safetensors file
_HASH = re.compile(r"[0-9a-f]{64}")


def record_of(checkpoint: str | Path | None, search: SearchConfig, **settings: Any) -> dict[str, Any]:
    """All that decides the proposals of a photo, but for the photo itself, as JSON has it.

    ``settings``: those that are not part of ``search``, such as ``top_n``. Raises an ``OSError`` for a checkpoint that
    cannot be read.
    """
    own = {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}
    record = {"checkpoint": hash_of(checkpoint_path(checkpoint)), "version": __version__, **own, **to_plain(search)}
    plain: dict[str, Any] = json.loads(json.dumps(record))  # a list for a tuple
    return plain


def fingerprint(record: Mapping[str, Any]) -> str:
    """The name of a record: 16 hexadecimal digits, other ones for other content, in whatever order it stands."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:DIGITS]


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between two records, as a line: "top_n was 5 and is 20"; empty where nothing does."""
    return ", ".join(
        f"{key} was {_brief(then.get(key))} and is {_brief(now.get(key))}"
        for key in dict.fromkeys([*now, *then])
        if then.get(key) != now.get(key)
    )


def hash_of(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def search_of(checkpoint: str | Path | None) -> tuple[SearchConfig, bool]:
    """The search settings in a checkpoint's header, and whether its model refines masks.

    Raises ``DataError`` for a file whose header is none of a checkpoint; loading the model checks the rest.
    """
    path = checkpoint_path(checkpoint)
    try:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if not 2 <= size <= LARGEST_HEADER:
                raise ValueError("it has no header")
            metadata = json.loads(file.read(size))["__metadata__"]
            model, search = json.loads(metadata["model"]), json.loads(metadata["search"])
            refines = model.get("architecture", "sharpmask") == "sharpmask"
    except OSError as error:
        raise DataError(f"checkpoint: {path} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"checkpoint: {path} must be a checkpoint of sharpmask: {shown(str(error))}") from error
    return SearchConfig.stored(search, f"{path}: search"), refines


def _brief(value: Any) -> str:
    if isinstance(value, str):
        return f"{value[:12]}..." if _HASH.fullmatch(value) else value
    return json.dumps(value)
