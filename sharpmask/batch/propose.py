"""The callable that turns a batch of photos into a batch of rows."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any, Final

from ..data.orientation import Exif
from ..engines import Engine, Precision, check_precision
from ..errors import DataError, is_out_of_memory
from ..family import FAMILY, checkpoint_path
from ..fingerprint import fingerprint, hash_of, record_of, search_of
from ..models.config import SearchConfig
from ..places import is_url, place_of
from ..ranges import Range, Settings, shown
from .ids import content_id, photo_id
from .rows import arrow, of_proposals, schema

if TYPE_CHECKING:
    from ..search import ProposalGenerator

MOST_BYTES: Final = 1 << 30
"""Most bytes of a photo that are fetched from a URL."""
_loading = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Propose(Settings):
    """A call turns a batch of photos into a table of rows, one a photo, in their order.

    It is small when it is pickled: a process loads the model at its first batch, and keeps it. The settings are those
    of :class:`~sharpmask.ProposalGenerator`; ``search`` defaults to the checkpoint's own. ``device``: as on the command
    line. ``root``: the folder or URL to which paths are relative in the ids of photos.

    Raises ``DataError`` for settings and checkpoints that cannot be used.
    """

    checkpoint: Path | str | None = field(default=None, kw_only=False)
    top_n: Annotated[int, Range(1, 100_000)] = 100
    refine: bool = True
    search: SearchConfig | None = None
    max_side: Annotated[int, Range(1, 100_000)] | None = 800
    exif: Exif = "turned"
    engine: Engine = "torch"
    precision: Precision = "fp32"
    calibration: Path | None = None
    device: str = "cpu"
    root: str | Path | None = None
    record: dict[str, Any] = field(init=False, default_factory=dict, compare=False, repr=False)
    """All that decides what is found, see :mod:`sharpmask.fingerprint`."""

    def __post_init__(self) -> None:
        if isinstance(self.root, (str, Path)):
            # Workers have another working folder.
            object.__setattr__(self, "root", place_of(self.root))
        super().__post_init__()
        check_precision(self.engine, self.precision, self.calibration)
        own, refines = search_of(self.checkpoint)
        resolved: dict[str, Any] = {"search": self.search or own, "refine": self.refine and refines}
        for name in ("checkpoint", "calibration"):
            path = getattr(self, name)
            if path is not None and str(path) not in FAMILY:
                resolved[name] = path.absolute()
        for name, value in resolved.items():
            object.__setattr__(self, name, value)
        search = resolved["search"]
        object.__setattr__(self, "record", record_of(self.checkpoint, search, **self._options("search", "device")))

    @property
    def fingerprint(self) -> str:
        """The name of the checkpoint, version and settings, which every row has."""
        return fingerprint(self.record)

    def schema(self) -> Any:
        """The ``pyarrow.Schema`` of the rows, whose metadata have the settings."""
        return schema({self.fingerprint: self.record})

    def __call__(self, batch: Any) -> Any:
        """A ``pyarrow.Table`` of rows for a batch of photos.

        ``batch``: columns by name, as a dict of arrays or lists, a ``pyarrow.Table`` or a pandas ``DataFrame``.
        ``path`` has paths or URLs that fsspec opens, ``bytes`` the content of files; where a photo has both, its
        content counts. ``id``, if there, has a photo's own key; else it is :func:`photo_id` of the path, or a hash of
        the content. Other columns are left out.

        A photo that cannot be searched has a row with ``error``. Raises ``DataError`` for a batch without photos'
        columns, for a model that cannot be loaded, and without the package pyarrow.
        """
        photos = _columns(batch)
        generator = _generator(self)
        rows = [self._row(generator, *photo) for photo in zip(*photos, strict=True)]
        return arrow().Table.from_pylist(rows, self.schema())

    def _row(self, generator: ProposalGenerator, key: Any, path: Any, content: Any) -> dict[str, Any]:
        """The row of one photo."""
        start = perf_counter()
        row: dict[str, Any] = {"fingerprint": self.fingerprint}
        try:
            row |= self._named(key, path, content)
            row |= of_proposals(generator.generate(_source(path, content)))
        except (ValueError, OSError, MemoryError, RuntimeError) as error:
            if not isinstance(error, (ValueError, OSError)) and not is_out_of_memory(error):
                raise
            row["error"] = _told(error)
        return row | {"seconds": perf_counter() - start}

    def _named(self, key: Any, path: Any, content: Any) -> dict[str, Any]:
        """The columns that tell which photo it is."""
        name = None if path is None else _text(path)
        if key is None:
            given = bytes(content) if isinstance(content, _CONTENT) else b""
            key = content_id(given) if name is None else photo_id(str(path), self.root)
        return {"id": _text(key), "path": name}

    def _options(self, *without: str) -> dict[str, Any]:
        """The fields that are options of a ``ProposalGenerator``."""
        left_out = ("checkpoint", "root", "record", *without)
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in left_out}


_CONTENT = (bytes, bytearray, memoryview)
"""What holds the content of a file."""


def _columns(batch: Any) -> tuple[list[Any], list[Any], list[Any]]:
    """The ids, paths and contents, None where there is none.

    Raises ``DataError`` without photos' columns, and for columns that are none or not of one length.
    """
    if isinstance(batch, (str, bytes, list, tuple)):
        raise DataError(f"batch must be columns by name, such as a dict of lists, got {type(batch).__name__}")
    names = list(getattr(batch, "column_names", batch))
    if not {"path", "bytes"} & set(names):
        raise DataError(f"batch must have a column path or bytes, got {', '.join(map(str, names)) or 'no column'}")
    found = {name: _values(name, batch[name]) for name in ("id", "path", "bytes") if name in names}
    count = len(next(iter(found.values())))
    if any(len(values) != count for values in found.values()):
        told = ", ".join(f"{name} {len(values)}" for name, values in found.items())
        raise DataError(f"batch must have columns of one length, got {told}")
    keys, paths, contents = (found.get(name, [None] * count) for name in ("id", "path", "bytes"))
    return keys, paths, contents


def _values(name: str, column: Any) -> list[Any]:
    """A column's values; None for the NaN by which pandas says that there is none.

    Raises ``DataError`` for a single value.
    """
    if isinstance(column, (str, Path, *_CONTENT)) or not hasattr(column, "__iter__"):
        raise DataError(f"batch: {name} must be a list or an array, a value a photo, got {shown(column)}")
    values = column.to_pylist() if hasattr(column, "to_pylist") else list(column)
    return [None if isinstance(value, float) and value != value else value for value in values]


def _source(path: Any, content: Any) -> bytes | Path:
    """What is given to be searched. Raises ``DataError`` for what is no photo."""
    if isinstance(content, _CONTENT):
        return bytes(content)
    if content is not None or not isinstance(path, (str, Path)):
        raise DataError(f"a photo must be a path, a URL or bytes, got {shown(path if content is None else content)}")
    return _fetched(path) if isinstance(path, str) and is_url(path) else Path(path)


def _fetched(url: str) -> bytes:
    """The content of a photo at a URL. Raises ``DataError`` where it cannot be had."""
    import fsspec  # comes with PyTorch

    try:
        with fsspec.open(url, "rb") as file:
            content: bytes = file.read(MOST_BYTES + 1)
    except ImportError as error:  # no fault of the photo
        raise ImportError(f"{url}: {error}") from error
    except Exception as error:  # of the store, of its connection: these have no class in common
        raise DataError(f"{url}: cannot be fetched: {_told(error) or type(error).__name__}") from error
    if len(content) > MOST_BYTES:
        raise DataError(f"{url}: must have at most {MOST_BYTES} bytes, got more")
    return content


def _told(error: BaseException) -> str:
    """An error as one line."""
    if is_out_of_memory(error):
        return "out of memory while it was searched; a smaller max_side takes less"
    return _text(" ".join(str(error).split()))


def _text(value: Any) -> str:
    """A text that Arrow takes: names of files may have bytes that are none, which become escapes."""
    return str(value).encode("utf-8", "backslashreplace").decode()


def _generator(propose: Propose) -> ProposalGenerator:
    """The search, made at the first call in a process."""
    with _loading:
        return _made(propose, propose.record["checkpoint"])


@lru_cache(maxsize=2)
def _made(propose: Propose, content: str) -> ProposalGenerator:
    """The search with a checkpoint of this hash. Raises ``DataError`` where it cannot be had."""
    from ..checkpoint import load_model
    from ..devices import usable_device
    from ..search import ProposalGenerator

    path = checkpoint_path(propose.checkpoint)
    model = load_model(path, usable_device(propose.device))
    if hash_of(path) != content:
        raise DataError(f"checkpoint: {path} must be as it was when Propose was made, but its content has changed")
    generator = ProposalGenerator(model, **propose._options("device"))
    _ = generator.form  # made once, not in every thread
    return generator
