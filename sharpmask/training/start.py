"""The model that a training starts with."""

from __future__ import annotations

from dataclasses import fields, replace

from ..checkpoint import load_model
from ..errors import DataError
from ..models import DeepMask, ModelConfig, from_config
from ..ranges import shown
from .stages import TrainConfig, stage_defaults


def initial_model(config: TrainConfig) -> DeepMask:
    """The model that training starts with: a fresh one, or one with the tensors of the ``start_from`` checkpoint."""
    if config.start_from is None:
        if config.stage == "sharpmask" and config.trained == "stage":
            raise DataError(
                "from must name a checkpoint of stage 'deepmask' (or --trained all learns everything), got none"
            )
        model = from_config(config.model)
        if config.trunk_weights is not None:
            model.trunk.load_weights(config.trunk_weights)
        return model
    source = load_model(config.start_from)
    refinement = ("architecture", "refinement", "mask_channels", "skip_channels", "skip_hidden", "crop_first")
    if source.config.architecture == config.model.architecture:
        chosen = source.config
    else:
        chosen = replace(source.config, **{name: getattr(config.model, name) for name in refinement})
    model = from_config(chosen)
    model.search = source.search
    missing, unexpected = model.load_state_dict(source.state_dict(), strict=False)
    if unexpected:
        raise DataError(
            f"from: {config.start_from} is a {source.config.architecture}, and stage {config.stage!r} trains a "
            f"{chosen.architecture}: it has no place for the tensor {unexpected[0]}"
        )
    if any(name.startswith(("trunk.", "encode.", "score.")) for name in missing):
        raise DataError(f"{config.start_from}: tensor {missing[0]} is missing")
    return model


def overruled(config: TrainConfig, model: ModelConfig) -> list[str]:
    """A line about the settings of a model that were asked for but are not those of ``model``, if there are any."""
    default = stage_defaults(config.stage).get("model", ModelConfig())
    names = [
        f"{f.name} is {shown(getattr(model, f.name))} and not {shown(getattr(config.model, f.name))}"
        for f in fields(ModelConfig)
        if getattr(config.model, f.name) not in (getattr(model, f.name), getattr(default, f.name))
    ]
    return [f"from: {config.start_from} decides the model's sizes: {', '.join(names)}"] if names else []
