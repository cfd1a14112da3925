"""Refinement is the plain module: its parameters, their first values, its results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from sharpmask_kernels.modules import Refinement

CHANNELS = (4, 3, 2, 5)  # feature, mask, out, skip


class Plain(nn.Module):
    def __init__(
        self, feature: int, mask: int, out: int, skip: int, bias: bool, upsample: str, padding_mode: Any
    ) -> None:
        super().__init__()
        self.upsample = upsample
        self.skip = nn.Conv2d(feature, skip, 3, padding=1, padding_mode=padding_mode, bias=bias)
        self.merge = nn.Conv2d(skip + mask, out, 3, padding=1, padding_mode=padding_mode, bias=bias)

    def forward(self, feature: Tensor, mask: Tensor) -> Tensor:
        skip = F.relu(self.skip(feature))
        merged = F.relu(self.merge(torch.cat([skip, mask], dim=1)))
        return F.interpolate(merged, scale_factor=2, mode=self.upsample)


@pytest.mark.parametrize("padding_mode", ["zeros", "replicate"])
@pytest.mark.parametrize("upsample", ["bilinear", "nearest"])
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_plain_module(bias: bool, upsample: str, padding_mode: str) -> None:
    torch.manual_seed(0)
    plain = Plain(*CHANNELS, bias, upsample, padding_mode).double()
    torch.manual_seed(0)
    ours = Refinement(*CHANNELS, bias=bias, upsample=upsample, padding_mode=padding_mode).double()
    assert list(ours.state_dict()) == list(plain.state_dict())
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)

    maps = [torch.randn(2, c, 5, 4, dtype=torch.float64, requires_grad=True) for c in CHANNELS[:2]]
    expected, found = plain(*maps), ours(*maps)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    wanted = torch.autograd.grad(expected.sin().sum(), [*maps, *plain.parameters()])
    gradients = torch.autograd.grad(found.sin().sum(), [*maps, *ours.parameters()])
    torch.testing.assert_close(gradients, wanted, rtol=1e-12, atol=1e-12)


def pruned(module: nn.Module) -> None:
    for conv in (module.skip, module.merge):
        prune.random_unstructured(conv, "weight", 0.5)


def pruned_and_loaded(module: nn.Module) -> None:
    """The weights that pruning masks come from a file, as the plain module's."""
    pruned(module)
    state = {name: x if "mask" in name else x + 1 for name, x in module.state_dict().items()}
    module.load_state_dict(state)


def with_hooks(module: nn.Module) -> None:
    module.skip.register_forward_hook(lambda _module, _inputs, out: out + 1)
    module.merge.register_forward_pre_hook(lambda _module, inputs: (inputs[0] * 2,))


CHANGES: dict[str, Callable[[Any], object]] = {
    "pruned": pruned,
    "pruned and loaded": pruned_and_loaded,
    "pruned for good": lambda m: (pruned(m), prune.remove(m.skip, "weight")),
    "weight norm": lambda m: (nn.utils.weight_norm(m.skip), m.skip.weight_g.data.mul_(2)),
    "spectral norm": lambda m: nn.utils.spectral_norm(m.merge).eval(),
    "parametrized": lambda m: nn.utils.parametrizations.weight_norm(m.skip),
    "orthogonal": lambda m: nn.utils.parametrizations.orthogonal(m.merge),
    "hooks": with_hooks,
    "backward hook": lambda m: m.skip.register_full_backward_hook(lambda _m, grads, _: (grads[0] * 2,)),
    "replaced forward": lambda m: setattr(m.skip, "forward", nn.Conv2d(4, 5, 1).double()),
    "another layer": lambda m: setattr(m, "skip", nn.Sequential(nn.Conv2d(4, 5, 1)).double()),
    "another merge": lambda m: setattr(m, "merge", nn.Sequential(nn.Conv2d(8, 2, 1)).double()),
    "dilated": lambda m: setattr(m, "skip", nn.Conv2d(4, 5, 3, padding=2, dilation=2).double()),
    "another border": lambda m: setattr(m.skip, "padding_mode", "circular"),
}


def outcome(module: nn.Module, maps: list[Tensor]) -> list[Tensor | None]:
    """The output and all gradients."""
    out = module(*maps)
    leaves = [*maps, *module.parameters()]
    return [out, *torch.autograd.grad(out.sin().sum(), leaves, allow_unused=True)]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_it_is_the_plain_module_after_a_change(change: str) -> None:
    modules = [Plain(*CHANNELS, True, "bilinear", "zeros"), Refinement(*CHANNELS)]
    for module in modules:
        torch.manual_seed(0)
        for parameter in module.double().parameters():
            nn.init.normal_(parameter)
        CHANGES[change](module)
    repr(modules[1])
    torch.manual_seed(1)
    maps = [torch.randn(2, c, 5, 4, dtype=torch.float64, requires_grad=True) for c in CHANNELS[:2]]
    expected, found = (outcome(module, maps) for module in modules)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_hooks_on_all_modules_run_and_count() -> None:
    module, maps = Refinement(*CHANNELS), [torch.randn(2, c, 5, 4) for c in CHANNELS[:2]]
    once, called = module(*maps), []
    with torch.nn.modules.module.register_module_forward_hook(lambda m, _inputs, _out: called.append(m)):
        torch.testing.assert_close(module(*maps), once)
    assert called == [module.skip, module.merge, module]
    double = torch.nn.modules.module.register_module_forward_pre_hook(lambda _m, inputs: tuple(2 * x for x in inputs))
    plain = Plain(*CHANNELS, True, "bilinear", "zeros")
    plain.load_state_dict(module.state_dict())
    with double:
        torch.testing.assert_close(module(*maps), plain(*maps))


def test_its_padding_mode_is_that_of_its_convolutions() -> None:
    module = Refinement(*CHANNELS, padding_mode="replicate")
    assert module.padding_mode == "replicate"
    with pytest.raises(AttributeError):
        module.padding_mode = "zeros"  # type: ignore[misc]


def test_its_text_names_the_options() -> None:
    assert "upsample=bilinear, padding_mode=zeros, backend=auto" in repr(Refinement(*CHANNELS))
    text = repr(Refinement(*CHANNELS, upsample="nearest", padding_mode="replicate", backend="reference"))
    assert "upsample=nearest, padding_mode=replicate, backend=reference" in text


@pytest.mark.parametrize("name", ["feature_channels", "mask_channels", "out_channels", "skip_channels"])
def test_refuses_no_channels(name: str) -> None:
    names = ("feature_channels", "mask_channels", "out_channels", "skip_channels")
    with pytest.raises(ValueError, match=f"^{name} must be at least 1, got 0$"):
        Refinement(**{**dict.fromkeys(names, 2), name: 0})


@pytest.mark.parametrize("option", ["upsample", "padding_mode", "backend"])
def test_refuses_unknown_options(option: str) -> None:
    options: dict[str, Any] = {option: "other"}
    with pytest.raises(ValueError, match=f"^{option} must be one of .*, got 'other'$"):
        Refinement(*CHANNELS, **options)


def test_it_compiles_as_one_graph() -> None:
    module = Refinement(*CHANNELS)
    maps = [torch.randn(2, c, 5, 4) for c in CHANNELS[:2]]
    torch.testing.assert_close(torch.compile(module, fullgraph=True, backend="aot_eager")(*maps), module(*maps))
