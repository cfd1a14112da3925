"""Models from configurations or names."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

from ..errors import DataError
from ..tensor_files import read_state_dict
from .config import Architecture, ModelConfig, SearchConfig, TrunkName
from .deepmask import DeepMask, OriginalDeepMask
from .sharpmask import SharpMask
from .trunk import ResNetTrunk, Trunk, build_trunk
from .weights import load_tensors


def build_model(
    architecture: Architecture,
    *,
    trunk: TrunkName | None = None,
    refinement: Literal["paper", "released"] = "paper",
    weights: str | Path | None = None,
    trunk_weights: str | None = None,
    **options: Any,
) -> DeepMask:
    """A DeepMask or SharpMask model.

    ``trunk``: "resnet50" (the paper's; the default), "resnet18", "efficientnet_lite0", "efficientnet_lite1",
    "efficientnet_lite2"; "vgg11" for "deepmask-original". ``refinement``: "paper" or "released". ``weights``: a file of
    all the model's tensors (safetensors). ``trunk_weights``: "imagenet" or a classifier's state_dict file.
    ``options``: other fields of :class:`ModelConfig`. Raises ``ValueError`` on unknown names and unusable sizes,
    ``DataError`` on unusable files.
    """
    original = architecture == "deepmask-original"
    defaults: dict[str, Any] = {"window": 224, "context": 0} if original else {}
    chosen: TrunkName = trunk or ("vgg11" if original else "resnet50")
    model = from_config(ModelConfig(architecture, chosen, refinement=refinement, **(defaults | options)))
    if trunk_weights is not None:
        model.trunk.load_weights(trunk_weights)
    if weights is not None:
        load_tensors(model, read_state_dict(Path(weights)), str(weights))
    return model


def from_config(config: ModelConfig) -> DeepMask:
    """The model of a configuration, with fresh weights.

    It carries the configuration as ``config``, and the paper's search for its window as ``search``. Raises
    ``ValueError`` on unknown names and unusable sizes.
    """
    model = _network(config, _trunk(config))
    model.config = config
    model.search = SearchConfig.for_window(config.window)
    return model


def without_memory(config: ModelConfig, source: str) -> DeepMask:
    """The model of a configuration that came from the file ``source``, on the meta device.

    It has shapes but no values, so sizes from a hostile file take no memory. Raises ``DataError`` where
    :func:`from_config` fails.
    """
    try:
        with torch.device("meta"):
            return from_config(config)
    except (ValueError, RuntimeError) as error:
        raise DataError(f"{source}: {str(error).splitlines()[0]}") from error


def _trunk(config: ModelConfig) -> Trunk:
    trunk = build_trunk(config.trunk)
    if config.trunk_padding == "reflect":
        if not isinstance(trunk, ResNetTrunk):
            raise ValueError(f"trunk_padding must be 'symmetric' for trunk {config.trunk}, got 'reflect'")
        trunk.pad_by_reflection()
    elif config.trunk_padding != "symmetric":
        raise ValueError(f"trunk_padding must be 'symmetric' or 'reflect', got {config.trunk_padding!r}")
    return trunk


def _network(config: ModelConfig, trunk: Trunk) -> DeepMask:
    """The architecture of a configuration on its trunk."""
    if config.architecture == "deepmask-original":
        return OriginalDeepMask(trunk, window=config.window, context=config.context, mask_side=config.mask_side)
    shared = {
        name: getattr(config, name) for name in ("window", "context", "features", "code", "mask_side", "score_hidden")
    }
    if config.architecture == "deepmask":
        return DeepMask(trunk, **shared)
    if config.architecture == "sharpmask":
        return SharpMask(
            trunk,
            refinement=config.refinement,
            mask_channels=tuple(config.mask_channels),
            skip_channels=tuple(config.skip_channels),
            skip_hidden=config.skip_hidden,
            crop_first=config.crop_first,
            **shared,
        )
    raise ValueError(
        f"architecture must be 'deepmask', 'sharpmask' or 'deepmask-original', got {config.architecture!r}"
    )
