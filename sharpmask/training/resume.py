"""What a run leaves for its continuation: its state, and the settings that the rest must share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ..data.data_set import DataSet
from ..data.layouts import find_annotations
from ..errors import DataError, counted
from ..plain import nearest, to_plain
from ..ranges import shown
from ..tensor_files import StateDict, read_safetensors
from .processes import world_size
from .stages import TrainConfig

STATE = "state.safetensors"
FREE = {
    *("dataset", "annotations", "validation", "validation_annotations", "start_from", "trunk_weights", "out"),
    *("steps", "validate_every", "save_every", "log_every", "workers", "threads", "device", "compile"),
    *("resume", "change"),
}
"""Settings that may differ in the rest of a run: none changes what the steps so far would have been.

The exception is ``steps`` with a schedule that ends with the last step, such as "cosine": the curve is stretched.
Data sets are compared by their annotations, because folders move.
"""
FIXED = ("stage", "model")
"""Settings that no run can change."""
REFORMING = {"optimizer", "trained", "frozen_stages"}
"""Settings that decide what the optimizer's state belongs to: if one changes, that state starts anew."""

_BY_HASH = dict.fromkeys(("dataset", "validation"), " (by a hash of the annotations)")
"""What an error says of the values of these settings in a record."""

Record = dict[str, Any]
"""What must stay the same, as plain data by name; the settings in others have names with dots."""


class State(NamedTuple):
    """What the file of a run's state holds."""

    step: int
    best: float
    sums: dict[str, list[float]]
    tensors: StateDict
    record: Record | None
    """None in files that were written before there were records."""


def make_record(config: TrainConfig) -> Record:
    """What the rest of a run of these settings must share with it."""
    record = {k: v for k, v in _flat(to_plain(config)) if k.partition(".")[0] not in FREE}
    record["dataset"] = " ".join(map(_name, config.data_sets()))
    if config.validation is not None:
        record["validation"] = _fingerprint(config.validation, config.validation_annotations)
    return record | {"processes": world_size()}


def keep_processes(saved: Record, now: Record, config: TrainConfig) -> None:
    """Let ``now`` keep the number of processes that the run began with, unless ``config`` asks for the change."""
    if type(saved.get("processes")) is int and "processes" not in config.change:
        now["processes"] = saved["processes"]


def batches_in_step(record: Record, config: TrainConfig) -> int:
    """How many batches all processes take together in a step, as many as when the run began.

    Raises ``DataError`` if those of now cannot share them evenly.
    """
    whole = config.accumulate * int(record["processes"])
    if whole < 1 or whole % world_size():
        raise DataError(
            f"out: a step of the run in {config.out} takes {counted(whole, 'batch', 'batches')}, which "
            f"{counted(world_size(), 'process', 'processes')} cannot share evenly; give it a number of "
            "processes that can, or ask for another step: --change processes"
        )
    return whole


def digest(record: Record) -> int:
    """A number below 2**63 that is that of another record only by chance."""
    return int(hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:15], 16)


def check_record(saved: Record, now: Record, config: TrainConfig) -> set[str]:
    """The names of what differs. Raises ``DataError`` that lists the differences that ``config`` does not allow."""
    if "soft_scores" in saved:  # the setting before score_target
        saved = {"score_target": "soft" if saved["soft_scores"] else "hard", **saved}
    # Of a setting that came later, older runs had the default.
    defaults = dict(_flat(to_plain(TrainConfig(dataset=(Path(),), out=Path()))))
    saved = {k: v for k, v in defaults.items() if k.partition(".")[0] not in FREE} | saved
    known = {*now, *(name.partition(".")[0] for name in now)}
    for name in config.change:
        if name not in known:
            raise DataError(f"change must name settings that a run keeps, got {name!r}{nearest(name, sorted(known))}")
    changed = [k for k in now if k in saved and saved[k] != now[k]]

    def told(names: Iterable[str]) -> str:
        return ", ".join(f"{k}{_BY_HASH.get(k, '')} {shown(saved[k])} -> {shown(now[k])}" for k in names)

    fixed = [k for k in changed if k.partition(".")[0] in FIXED]
    if fixed:
        raise DataError(
            f"out: the run in {config.out} cannot go on with another model: {told(fixed)}; "
            "start another run --from its checkpoint"
        )
    allowed = {k for k in changed if {k, k.partition(".")[0]} & set(config.change)}
    refused = [k for k in changed if k not in allowed]
    if refused:
        raise DataError(
            f"out: the run in {config.out} had other settings: {told(refused)}; give them as they were "
            f"(--config {config.out / 'config.yaml'}), or ask for the change: --change {' '.join(refused)}"
        )
    return set(changed)


def read_state(path: Path) -> State:
    """The state in a file. Raises ``DataError`` for any other file."""
    tensors, metadata = read_safetensors(path, "state")
    try:
        step, best, sums = int(metadata["step"]), float(metadata["best"]), json.loads(metadata["sums"])
        record = json.loads(metadata["record"]) if "record" in metadata else None
        lists = isinstance(sums, dict) and all(isinstance(v, list) for v in sums.values())
        if step < 0 or best != best or not lists or not isinstance(record, dict | None):
            raise ValueError("its numbers are out of range")
        sums = {str(k): [float(x) for x in v] for k, v in sums.items()}
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: not the state of a run: {str(error).splitlines()[0]}") from error
    return State(step, best, sums, tensors, record)


def state_metadata(step: int, best: float, sums: Mapping[str, list[float]], record: Record) -> dict[str, str]:
    """The metadata of a state file."""
    return {"step": str(step), "best": repr(best), "sums": json.dumps(sums), "record": json.dumps(record)}


def optimizer_slots(tensors: StateDict, parameters: list[Tensor]) -> dict[int, StateDict]:
    """The optimizer's tensors by the number of their parameter. Raises ``ValueError`` if one does not fit."""
    slots: dict[int, StateDict] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, number, slot = name.split(".")
            if value.ndim and value.shape != parameters[int(number)].shape:
                raise ValueError(f"{name} must be of shape {tuple(parameters[int(number)].shape)}")
            slots.setdefault(int(number), {})[slot] = value
    return slots


def _flat(plain: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Plain settings with the names of those in others joined by dots."""
    for name, value in plain.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _name(data: DataSet) -> str:
    """A data set by its annotations, and by its weight if it has one."""
    name = _fingerprint(data.folder, data.annotations)
    return name if data.weight == 1 else f"{name}:{data.weight:g}"


def _fingerprint(folder: Path, annotations: Path | None) -> str:
    """A short hash of a data set's annotation file."""
    path = annotations or find_annotations(folder)
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
