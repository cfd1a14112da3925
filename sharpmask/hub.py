"""Models in folders as the Hugging Face Hub has them, and on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .errors import DataError
from .models import DeepMask
from .packages import check


def from_pretrained(name: str | Path, *, device: str = "cpu", **options: Any) -> DeepMask:
    """The model in a folder that ``save_pretrained`` wrote, or on the Hugging Face Hub by its name ``user/model``.

    ``options``: of ``ModelHubMixin.from_pretrained``, such as ``revision``, ``token``, ``cache_dir`` and
    ``local_files_only``. Nothing is unpickled and no code that comes with a model is run. Raises ``DataError`` for one
    that is not there, cannot be reached or cannot be used, and without the package huggingface_hub.
    """
    shared = _mixin()
    try:
        model: DeepMask = shared.from_pretrained(str(name), **options).model
    except (DataError, TypeError):
        raise
    except Exception as error:  # of the hub, of its connection, of names: these have no class in common
        why = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError(
            f"{name}: must be a folder of a model, or a model on the hub that can be reached: {why}"
        ) from error
    return model.to(device)


def save_pretrained(model: DeepMask, folder: str | Path) -> None:
    """Write a model into a folder: ``model.safetensors``, a checkpoint, ``config.json`` and a model card to complete.

    A card that is there stays. Raises ``DataError`` as ``save_model`` does, and without the package huggingface_hub.
    """
    _mixin()(model).save_pretrained(folder)


def push_to_hub(model: DeepMask, name: str, **options: Any) -> str:
    """Upload a model to the hub as ``user/model``, and return its address; you must be logged in (``hf auth login``).

    ``options``: of ``ModelHubMixin.push_to_hub``, such as ``private``, ``token`` and ``commit_message``.
    """
    return str(_mixin()(model).push_to_hub(name, model_card_kwargs={"repo_id": name}, **options))


def _mixin() -> Any:
    """The class that has the mixin's methods."""
    check("huggingface_hub", "the hub", "hub")
    from .hub_mixin import Shared

    return Shared
