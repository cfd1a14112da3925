"""Which backend runs an op, and why.

The argument ``backend=`` names one backend, strictly: it runs the op or says why it cannot. Without it, the
preferences (:mod:`sharpmask_kernels.preferences`) are tried in order: those of ``use_backend``, or those of the
environment variable ``SHARPMASK_BACKEND`` (names separated by commas). Each op is decided on its own: one that no
preferred backend can run takes the reference, and says so once at INFO level. Without preferences, the best backend for
the tensors' device runs the op. GPU kernels are taken only after :mod:`sharpmask_kernels.self_check` has found them to
agree with the reference on that GPU.
"""

from __future__ import annotations

import functools
import logging

import torch

from . import checks, preferences, registry, verdicts

log = logging.getLogger("sharpmask_kernels")


def available_backends() -> dict[str, str]:
    """Every backend, with "ready" or the reason why it cannot run here."""
    return {name: registry.backend(name).unavailable() or "ready" for name in registry.BACKENDS}


def choose(op: str, like: torch.Tensor, backend: str | None) -> str:
    """The backend that runs ``op`` on maps of the device and dtype of ``like``.

    Raises ``ValueError`` if ``backend`` does not have the op or does not take such maps, ``RuntimeError`` if it cannot
    run here.
    """
    if backend is not None:
        checks.choice("backend", backend, registry.BACKENDS)
    if like.device.type == "meta":
        return "reference"
    return _choose(op, like.device, like.dtype, backend, preferences.current())


def _choose(op: str, device: torch.device, dtype: torch.dtype, backend: str | None, preferred: tuple[str, ...]) -> str:
    return _chosen(op, device, dtype, backend, preferred)


# As torch.compiler.assume_constant_result does, which imports the compiler. A compiler cannot trace imports and
# self-checks.
_choose._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache  # so that a call costs one look-up, and a fall-back is logged once for each kind of input
def _chosen(op: str, device: torch.device, dtype: torch.dtype, backend: str | None, preferred: tuple[str, ...]) -> str:
    if backend is not None:
        _insist(backend, op, device, dtype)
        return backend
    for name in preferred:
        checks.choice("SHARPMASK_BACKEND", name, registry.BACKENDS)  # use_backend has checked its own
    if preferred:
        return _prefer(preferred, op, device, dtype)
    return _best(op, device, dtype)


def _insist(name: str, op: str, device: torch.device, dtype: torch.dtype) -> None:
    declared = registry.backend(name)
    if not declared.has(op):
        those = ", ".join(map(repr, registry.having(op)))
        raise ValueError(f"backend must be one that has {op} ({those}), got {name!r}")
    if reason := declared.unavailable():
        raise RuntimeError(f"backend {name!r} is not available: {reason}")
    if reason := declared.refusal(device, dtype):
        raise ValueError(reason)


def _obstacle(name: str, op: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why ``name`` cannot run ``op`` on such maps, or None."""
    try:
        _insist(name, op, device, dtype)
    except (ValueError, RuntimeError) as error:
        return str(error)
    return None


def _prefer(names: tuple[str, ...], op: str, device: torch.device, dtype: torch.dtype) -> str:
    obstacles = []
    for name in names:
        obstacle = _obstacle(name, op, device, dtype)
        if obstacle is None:
            return name
        obstacles.append(obstacle)
    log.info("%s runs on the reference: %s", op, "; ".join(obstacles))
    return "reference"


def _best(op: str, device: torch.device, dtype: torch.dtype) -> str:
    for declared in registry.automatic(device.type):
        possible = _obstacle(declared.name, op, device, dtype) is None
        if possible and (not declared.self_checked or _agrees(declared.name, op, device)):
            return declared.name
    return "reference"


def _agrees(name: str, op: str, device: torch.device) -> bool:
    """Whether the self-check has found the backend's op to agree with the reference on this device."""
    found = verdicts.verdict(name, device).get(op, "not checked")
    if found != "ok":
        log.warning("%s runs on the reference on %s: self-check of backend %r: %s", op, device, name, found)
    return found == "ok"
