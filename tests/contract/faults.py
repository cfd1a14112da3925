"""Can the contract suite fail? Fifteen faults, planted in the reference one at a time, must each be caught.

``python -m tests.contract.faults`` runs, for each fault, the test that is there to catch it, and prints whether it did.
It exits with 1 if a fault went unnoticed. Tests run as they do by default, with a selection of their parameters'
combinations (:mod:`tests.grid`): what that catches, ``--full`` catches too.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sharpmask_kernels import layout
from sharpmask_kernels.backends.reference import decoder, gather_windows, horizontal, refine_windows, refinement

FOLDER = Path(__file__).parent

Plant = Callable[[pytest.MonkeyPatch], None]


def wrong_padding(patch: pytest.MonkeyPatch) -> None:
    """Reflects at the border where the outermost cell should be repeated."""

    def reflect(x: Tensor) -> Tensor:
        return F.pad(x, (1, 1, 1, 1), mode="reflect") if min(x.shape[2:]) > 1 else F.pad(x, (1, 1, 1, 1))

    patch.setattr(refinement, "replicate", reflect)


def swapped_concatenation(patch: pytest.MonkeyPatch) -> None:
    """Puts the mask before the skip."""
    original = refinement.merge_upsample

    def swapped(skip: Tensor, mask: Tensor, weight: Tensor, *rest: Any) -> Any:
        km = mask.shape[1]
        return original(skip, mask, torch.cat([weight[:, km:], weight[:, :km]], dim=1), *rest)

    patch.setattr(refinement, "merge_upsample", swapped)


def missing_bias(patch: pytest.MonkeyPatch) -> None:
    """Forgets the bias of every convolution."""
    original = refinement.conv3x3
    patch.setattr(refinement, "conv3x3", lambda x, weight, bias, mode: original(x, weight, None, mode))


def shifted_phase(patch: pytest.MonkeyPatch) -> None:
    """Takes the corners, not the centres, of the cells as the places of the bilinear taps."""
    original = refinement.up2

    def shifted(x: Tensor, mode: str) -> Tensor:
        if mode == "nearest":
            return original(x, mode)
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)

    patch.setattr(refinement, "up2", shifted)


def always_the_mask_first(patch: pytest.MonkeyPatch) -> None:
    """Concatenates a decoder's maps in one order only."""
    original = decoder.joined
    patch.setattr(decoder, "joined", lambda mask, skip, mask_first: original(mask, skip, True))


def corners_for_centres(patch: pytest.MonkeyPatch) -> None:
    """Takes one kind of bilinear upsampling in a decoder for the other."""
    original = decoder.up2
    patch.setattr(decoder, "up2", lambda x, mode: original(x, mode.removesuffix("_corners")))


def gradient_through_any_activation(patch: pytest.MonkeyPatch) -> None:
    """Forgets the derivative of a decoder's activation."""
    patch.setattr(decoder, "activation_backward", lambda grad, out, activation: grad)


def crossed_gradients(patch: pytest.MonkeyPatch) -> None:
    """Sends the gradients of a decoder's two maps back as if they stood in the other order."""
    original = decoder.split_gradient

    def crossed(grad: Tensor, mask_channels: int, mask_first: bool) -> list[Tensor]:
        return original(grad, mask_channels, not mask_first)

    patch.setattr(decoder, "split_gradient", crossed)


def off_by_one_window(patch: pytest.MonkeyPatch) -> None:
    """Starts every window one cell too low."""
    original = gather_windows.first_cell
    patch.setattr(gather_windows, "first_cell", lambda cell, step: original(cell, step) + 1)


def missing_relu_mask(patch: pytest.MonkeyPatch) -> None:
    """Sends gradients back through activations that ReLU stopped."""
    original = refinement.unpack_bits
    patch.setattr(refinement, "unpack_bits", lambda packed, width: torch.ones_like(original(packed, width)))


def gradient_of_what_is_not_needed(patch: pytest.MonkeyPatch) -> None:
    """Sends gradients back from tiles that were not computed."""
    original = horizontal.where_needed

    def forgetful(x: Tensor, needed: Tensor | None, tile: int) -> Tensor:
        return original(x, needed, tile) if sys._getframe(1).f_code.co_name == "horizontal" else x

    patch.setattr(horizontal, "where_needed", forgetful)


def wrong_strides(patch: pytest.MonkeyPatch) -> None:
    """Reads maps as if they were contiguous, whatever their strides."""
    original = gather_windows.gather_windows

    def contiguous(maps: Sequence[Tensor], *rest: Any) -> Tensor:
        return original([m.as_strided(m.shape, torch.empty(m.shape, device="meta").stride()) for m in maps], *rest)

    patch.setattr(gather_windows, "gather_windows", contiguous)


def unwritten_output(patch: pytest.MonkeyPatch) -> None:
    """Leaves the last row of the last window as it was allocated."""
    original = refine_windows.refine_windows

    def unwritten(encoding: Tensor, *rest: Any) -> None:
        *given, out = rest
        whole = torch.zeros_like(out)
        original(encoding, *given, whole)
        out.flatten(0, 1)[:-1] = whole.flatten(0, 1)[:-1]

    patch.setattr(refine_windows, "refine_windows", unwritten)


def nondeterministic_sum(patch: pytest.MonkeyPatch) -> None:
    """Adds the gradients of overlapping windows in another order at every call."""
    original = gather_windows.gather_windows_backward
    order = torch.Generator().manual_seed(0)

    def shuffled(grad: Tensor, *rest: Any) -> list[Tensor]:
        shuffle = torch.randperm(len(grad), generator=order)
        windows = [field[shuffle] for field in rest[:4]]
        return original(grad[shuffle], *windows, *rest[4:])

    patch.setattr(gather_windows, "gather_windows_backward", shuffled)


def wrong_fake(patch: pytest.MonkeyPatch) -> None:
    """Tells compilers that the output is contiguous where it is channels_last."""
    original = layout.memory_format

    def forgetful(*maps: Tensor) -> torch.memory_format:
        fake = any(isinstance(m, torch._subclasses.FakeTensor) for m in maps)
        return torch.contiguous_format if fake else original(*maps)

    patch.setattr(layout, "memory_format", forgetful)


FAULTS: dict[str, tuple[Plant, str]] = {
    plant.__name__: (plant, test)
    for plant, test in (
        (wrong_padding, "test_refinement.py::test_formula"),
        (swapped_concatenation, "test_refinement.py::test_formula"),
        (missing_bias, "test_refinement.py::test_formula"),
        (shifted_phase, "test_refinement.py::test_formula"),
        (always_the_mask_first, "test_decoder.py::test_formula"),
        (corners_for_centres, "test_decoder.py::test_formula"),
        (gradient_through_any_activation, "test_decoder.py::test_gradients"),
        (crossed_gradients, "test_decoder.py::test_gradients"),
        (off_by_one_window, "test_gather_windows.py::test_formula"),
        (missing_relu_mask, "test_gradients.py::test_gradients"),
        (gradient_of_what_is_not_needed, "test_horizontal.py::test_gradients"),
        (wrong_strides, "test_gather_windows.py::test_formula"),
        (unwritten_output, "test_refine_windows.py::test_formula"),
        (nondeterministic_sum, "test_determinism.py::test_the_same_bits_again"),
        (wrong_fake, "test_pytorch.py::test_opcheck"),
    )
}
"""Each fault, and the test that is there to catch it."""


def caught(fault: str) -> bool:
    """Whether the test that is there for it fails with ``fault`` planted."""
    _, test = FAULTS[fault]
    command = [sys.executable, "-m", "pytest", f"{FOLDER / test}", "-k", "reference", "-x", "-q", "--fault", fault]
    done = subprocess.run([*command, "-p", "no:cacheprovider"], capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"pytest could not run:\n{done.stdout}{done.stderr}")
    return done.returncode == 1


def main() -> int:
    with ThreadPoolExecutor(2) as pool:
        found = dict(zip(FAULTS, pool.map(caught, FAULTS), strict=True))
    width = max(map(len, FAULTS))
    for fault, yes in found.items():
        print(f"{fault:{width}}  {'caught' if yes else 'NOT CAUGHT'} by {FAULTS[fault][1]}")
    return int(not all(found.values()))


if __name__ == "__main__":
    sys.exit(main())
