"""Adapters: forwards for kinds of modules that the search in traces cannot find."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .. import hooks
from ..functional import add_upsample
from .graph import conv_problem
from .run import added
from .sources import uses_only

Matches = Callable[[nn.Module], bool]
Forward = Callable[..., Any]

_adapters: list[tuple[Matches, Forward]] = []


def register_adapter(kind: type[nn.Module] | Matches, forward: Forward) -> None:
    """Teach :func:`fuse` a kind of module that it cannot find by itself.

    ``kind`` is a class, which means instances of exactly that class, or a function that takes a module and returns
    whether it is of the kind. ``forward(module, *args, **kwargs)`` then runs in place of the class's forward.
    ``kind`` must return False for a module whose results ``forward`` would change, for instance because a part has
    hooks. Adapters come before the search by structure, and the last one registered comes first. Raises
    ``TypeError`` for other arguments.
    """
    if not callable(kind) or (isinstance(kind, type) and not issubclass(kind, nn.Module)):
        raise TypeError(f"kind must be a subclass of torch.nn.Module or a function, got {kind!r}")
    if not callable(forward):
        raise TypeError(f"forward must be a function, got {forward!r}")
    matches: Matches = (lambda module: type(module) is kind) if isinstance(kind, type) else kind
    _adapters.insert(0, (matches, forward))


def adapter_for(module: nn.Module) -> Forward | None:
    """The forward of the first adapter that knows the module, or None."""
    return next((forward for matches, forward in _adapters if matches(module)), None)


def _is_two_net_refinement(module: nn.Module) -> bool:
    """Whether this is the refinement module of the public PyTorch port, foolwood/deepmask-pytorch.

    In that module ``layer1`` is the horizontal net, ``layer2`` the vertical net, and ``layer3`` the ReLU and the
    upsampling. A layer before each convolution pads by reflection.
    """
    nets: list[Any] = [getattr(module, f"layer{i}", None) for i in (1, 2, 3)]
    plain_class = getattr(module, "_plain_class", type(module))
    if plain_class.__name__ != "RefineModule" or not all(type(net) is nn.Sequential for net in nets):
        return False
    last = [*list(nets[1])[-2:], *nets[2]]
    return (
        [type(layer) for layer in last] == [nn.ReflectionPad2d, nn.Conv2d, nn.ReLU, nn.UpsamplingNearest2d]
        and last[0].padding == (1, 1, 1, 1)
        and conv_problem(last[1], padding=0) is None
        and last[3].scale_factor == 2
        and not any(map(hooks.customized, [*nets[1:], *last]))
    )


def _two_net_refinement(module: Any, maps: tuple[Tensor, Tensor]) -> Tensor:
    """Run the op on the padded mask. The op pads once more, so the result has an extra border, which is cut off."""
    if hooks.anywhere() or not _is_two_net_refinement(module):  # changed since
        plain: Tensor = module._plain_class.forward(module, maps)
        return plain
    horizontal, mask = module.layer1(maps[0]), maps[1]
    *layers, conv = module.layer2
    for layer in layers:
        mask = layer(mask)
    horizontal = F.pad(horizontal, (1, 1, 1, 1))
    return add_upsample(horizontal, mask, conv.weight, conv.bias, upsample="nearest")[:, :, 2:-2, 2:-2]


register_adapter(_is_two_net_refinement, _two_net_refinement)


_PYRAMID_NAMES = (
    "list keys values get_result_from_inner_blocks append get_result_from_layer_blocks range len shape F interpolate"
    " insert extra_blocks OrderedDict zip"
)


def _is_pyramid(module: nn.Module) -> bool:
    """Whether this is torchvision's FeaturePyramidNetwork, whose forward loops over a dictionary of maps."""
    kind = getattr(module, "_plain_class", type(module))
    known = (kind.__module__, kind.__name__) == ("torchvision.ops.feature_pyramid_network", "FeaturePyramidNetwork")
    return known and "forward" not in vars(module) and uses_only(kind.forward, _PYRAMID_NAMES)


def _pyramid(module: Any, x: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each level's sum is one op: lateral + up2(level above)."""
    names, maps = list(x), list(x.values())
    top = module.get_result_from_inner_blocks(maps[-1], -1)
    results = [module.get_result_from_layer_blocks(top, -1)]
    for level in reversed(range(len(maps) - 1)):
        lateral = module.get_result_from_inner_blocks(maps[level], level)
        top = added(top, lateral.shape[-2:], lateral, mode="nearest")
        results.insert(0, module.get_result_from_layer_blocks(top, level))
    if module.extra_blocks is not None:
        results, names = module.extra_blocks(results, maps, names)
    return OrderedDict(zip(names, results, strict=False))


register_adapter(_is_pyramid, _pyramid)
