"""Options that several commands share: how photos are searched, what computes, and on how many machines."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Literal

from ..engines import Engine, Precision, check_precision
from ..errors import DataError
from ..models.config import INSIDE, Geometry, SearchConfig, SearchScale
from ..ranges import Length, Range, Settings, field_types


@dataclass(frozen=True)
class StoredSearch(Settings):
    """How full images are searched, as checkpoints may say. Settings that are not given come from the checkpoint."""

    scales: Annotated[tuple[SearchScale, ...], Length(1, 64, distinct=True)] | None = None
    """Scales at which an image is searched, e.g. 0.25 0.5 1."""
    threshold: Annotated[float, INSIDE] | None = None
    """Probability above which a pixel belongs to a mask."""
    mask_nms: Annotated[float, Range(0, 1, above=True)] | None = None
    """Drop a proposal if its mask has more than this IoU with that of a better one; 1 to drop none."""
    box_nms: Annotated[float, Range(0, 1, above=True)] | None = None
    """The same with boxes instead of masks."""
    soft_nms: bool | None = None
    """Lower the scores of such proposals instead of dropping them (Soft-NMS)."""
    stability: Annotated[float, Range(0, 4)] | None = None
    """Multiply each score by how sharp its mask is, to this power; 0 to leave it."""
    scale_prior: Annotated[float, Range(0, 4)] | None = None
    """Multiply scores by (scale / smallest scale) to the power of minus this; 0 to leave them."""
    spread: Annotated[float, Range(0, 4)] | None = None
    """How much windows whose neighbours score higher are put off when windows are chosen; 0 for not at all."""
    candidates: Annotated[int, Range(0, 100_000)] | None = None
    """Refine at least so many windows, of which the best masks are kept; 0 for as many as are asked for."""
    geometry: Geometry | None = None
    """How windows lie on the image: by pixel centres, or (released, released-exact) as in the authors' code."""

    def over(self, search: SearchConfig) -> SearchConfig:
        """A checkpoint's settings, replaced by those that are given."""
        given = {name: getattr(self, name) for name in field_types(SearchConfig) if hasattr(self, name)}
        # No IoU exceeds 1, so 1 switches suppression off.
        off = {k: None for k in ("mask_nms", "box_nms") if given[k] == 1}
        return replace(search, **{k: v for k, v in given.items() if v is not None} | off)


@dataclass(frozen=True)
class SearchOptions(StoredSearch):
    """A search, and what no checkpoint says of it."""

    max_side: Annotated[int, Range(0, 100_000)] = 800
    """A photo with a longer side is searched as if that side had this many pixels; 0 for no limit."""
    device: str = "cpu"
    """Device to compute on: cpu, cuda, cuda:1, ..., or auto: cuda where there is a GPU, else cpu."""


@dataclass(frozen=True)
class EngineOptions(Settings):
    """What computes the maps that windows share."""

    engine: Engine = "torch"
    """What computes the maps that windows share: docs/engines.md. compile is for GPUs, openvino for CPUs."""
    precision: Precision = "fp32"
    """Precision of these maps: bf16 and fp16 on GPUs; with openvino bf16 and int8, on CPUs that are faster by it."""
    calibrate: Path | None = None
    """Photos, a folder or one, from which int8 takes its ranges. Without any: the photo that comes with the package."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_precision(self.engine, self.precision, self.calibrate)


@dataclass(frozen=True)
class ClusterOptions(Settings):
    """Very many photos, on many cores or machines: docs/scale.md. Results are Parquet files."""

    cluster: Literal["ray"] | None = None
    """Search on this kind of cluster. Images may then be URLs, lists (.txt), tables (.parquet) and archives (.tar)."""
    address: str = "local"
    """Cluster to use: local, a small one on this machine; auto, the one that this machine is part of; or an address."""
    workers: Annotated[int, Range(1, 100_000)] | None = None
    """Workers of one core each. Without a number: as many as the cluster has room for."""
    rows_per_file: Annotated[int, Range(1, 100_000)] = 200
    """Photos whose results stand in one file."""
    worker_memory: Annotated[float, Range(0, 10_000, above=True)] = 1.2
    """Gigabytes of memory that are reserved for a worker."""
    gpu_share: Annotated[float, Range(0, 1, above=True)] = 1.0
    """Part of a GPU that is reserved for a worker, with --device cuda."""
    photo_seconds: Annotated[float, Range(0, 1_000_000, above=True)] = 600.0
    """Seconds after which a worker that has no result for a photo is replaced."""
    root: Path | None = None
    """Folder or URL above all photos: their ids depend on the paths below it, not on the folders that are given."""
    restart: bool = False
    """Remove the results that the output folder has, and begin again."""
    retry_errors: bool = False
    """With --resume, search photos again whose rows have an error, as after a failure of the network."""

    def __post_init__(self) -> None:
        super().__post_init__()
        changed = [f.name for f in fields(self) if f.name != "cluster" and getattr(self, f.name) != f.default]
        if self.cluster is None and changed:
            raise DataError(f"{changed[0]}: it needs --cluster ray")
