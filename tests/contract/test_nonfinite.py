"""NaN and infinity come out where they must, and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sharpmask_kernels.checks import PADDING_MODES

from .inputs import MODES, Random, TopDownPass, arguments, array, channels_last, contiguous, windows_at
from .oracle import FORMULAS, PLAIN
from .subjects import REFINEMENT, Subject, each

pytestmark = pytest.mark.grid

VALUES = pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
LAYOUTS = pytest.mark.parametrize("layout", [contiguous, channels_last])
SPOILED = pytest.mark.parametrize("spoiled", ["map", "gradient"])


def around(where: np.ndarray) -> np.ndarray:
    """``where`` and the pixels next to it. A bilinear tap of weight 0 may make a NaN of an infinity beside it."""
    grown = F.max_pool2d(torch.from_numpy(where).float(), 3, stride=1, padding=1)
    return grown.numpy() > 0


def assert_non_finite_as(out: np.ndarray, expected: np.ndarray) -> None:
    """Finite and not at the same places; NaN and infinity are not told apart."""
    found, must = ~np.isfinite(out), ~np.isfinite(expected)
    assert must.any() and not must.all()
    assert not (must & ~found).any(), "finite where it must not be"
    assert not (found & ~around(must)).any(), "not finite where it must be"


def assert_gradients_finite_as(
    op: Callable[..., Tensor],
    plain: Callable[..., Tensor],
    given: Sequence[Tensor],
    spoiled: str,
    cell: tuple[int, int] = (4, 4),
) -> list[Tensor]:
    """A NaN in the second map, or at ``cell`` in the result's gradient, makes the same gradients NaN. Returns them."""
    found = []
    for call in (op, plain):
        inputs = [x.clone().requires_grad_() for x in given]
        if spoiled == "map":
            with torch.no_grad():
                inputs[1][0, 1, 2, 2] = math.nan
        out = call(*inputs)
        gradient = torch.ones_like(out)
        if spoiled == "gradient":
            gradient[0, 0, cell[0], cell[1]] = math.nan
        found.append(torch.autograd.grad(out, inputs, gradient))
    for x, y in zip(*found, strict=True):
        assert torch.equal(x.isfinite(), y.isfinite())
    return list(found[0])


@each(*REFINEMENT)
@VALUES
@LAYOUTS
@pytest.mark.parametrize(("upsample", "padding_mode"), MODES)
@pytest.mark.parametrize("cell", [(0, 0), (3, 4), (6, 8)])
@pytest.mark.parametrize("which", [0, 1])
def test_a_cell_of_a_map(
    subject: Subject,
    value: float,
    layout: Callable[[Tensor], Tensor],
    upsample: str,
    padding_mode: str,
    cell: tuple[int, int],
    which: int,
) -> None:
    # Positive values: an infinity keeps its sign, so that ReLU makes 0 of -inf everywhere or nowhere.
    inputs = [
        x.abs() for x in arguments(subject.op, Random(torch.float32, device=subject.device), (1, 7, 9), (2, 3, 2))
    ]
    inputs[which][0, 1, cell[0], cell[1]] = value
    inputs[:2] = [layout(x) for x in inputs[:2]]
    if value == -math.inf and not (subject.op == "refine" and which == 0):
        inputs[2 if subject.op != "refine" else 4].neg_()  # ReLU lets through what it would stop
    out = subject(*inputs, upsample=upsample, padding_mode=padding_mode)
    with np.errstate(invalid="ignore"):
        expected = FORMULAS[subject.op](*map(array, inputs), upsample, padding_mode)
    if np.isfinite(expected).all():  # -inf that ReLU stopped
        assert value == -math.inf
        assert np.isfinite(array(out)).all()
    else:
        assert_non_finite_as(array(out), expected)


@each("refine")
@VALUES
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("skip", [8, 16])
def test_a_cell_of_a_wide_feature(subject: Subject, value: float, padding_mode: str, skip: int) -> None:
    """Fast algorithms for many channels combine cells that the formula does not."""
    random = Random(torch.float32, device=subject.device)
    inputs = [x.abs() for x in arguments("refine", random, (1, 9, 10), (skip, 3, 2), feature_channels=32)]
    inputs[0][0, 1, 3, 4] = value
    out = subject(*inputs, padding_mode=padding_mode)
    with np.errstate(invalid="ignore"):
        expected = FORMULAS["refine"](*map(array, inputs), "bilinear", padding_mode)
    if value == -math.inf:
        assert np.isfinite(array(out)).all()  # ReLU stops it
    else:
        assert_non_finite_as(array(out), expected)


@each("refine")
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
def test_gradients_of_a_wide_feature(subject: Subject, padding_mode: str) -> None:
    random = Random(torch.float32, device=subject.device)
    given = [x.abs() for x in arguments("refine", random, (1, 10, 12), (16, 3, 2), feature_channels=32)]
    of_feature, *_ = assert_gradients_finite_as(
        lambda *x: subject(*x, padding_mode=padding_mode),
        lambda *x: PLAIN["refine"](*x, "bilinear", padding_mode),
        given,
        "gradient",
        cell=(8, 9),
    )
    assert not of_feature.isfinite().all() and of_feature.isfinite().any()


@each(*REFINEMENT)
@VALUES
def test_a_weight(subject: Subject, value: float) -> None:
    """One that is not finite reaches the whole map of its output channel, and of no other."""
    inputs = [
        x.abs() for x in arguments(subject.op, Random(torch.float32, device=subject.device), (1, 4, 5), (2, 3, 3))
    ]
    merge = inputs[4] if subject.op == "refine" else inputs[2]
    merge[1, 2, 1, 1] = value
    finite = array(subject(*inputs))
    assert np.isfinite(finite[:, [0, 2]]).all()
    assert (np.isnan(finite[:, 1]) | (finite[:, 1] == max(value, 0))).all()


@each(*REFINEMENT)
@SPOILED
def test_gradients(subject: Subject, spoiled: str) -> None:
    given = [x.abs() for x in arguments(subject.op, Random(torch.float32, device=subject.device), (2, 5, 6), (2, 3, 2))]
    assert_gradients_finite_as(subject, lambda *x: PLAIN[subject.op](*x, "bilinear", "zeros"), given, spoiled)


@each("gather_windows")
@VALUES
def test_gathering_keeps_them_in_their_windows(subject: Subject, value: float) -> None:
    maps = torch.zeros(1, 1, 3, 3, device=subject.device)
    maps[0, 0, 0, 0] = value
    out = subject(maps, windows_at((0, 0, 0, 0), (0, 0, 1, 1), (0, 0, -3, 0), device=subject.device), 2)
    assert out.isfinite().logical_not().flatten(1).sum(1).tolist() == [1, 0, 0]


@each("gather_windows")
def test_gradients_of_gathering(subject: Subject) -> None:
    maps = torch.zeros(1, 1, 3, 3, device=subject.device, requires_grad=True)
    out = subject(maps, windows_at((0, 0, -1, -1), (0, 0, 1, 1), device=subject.device), 2)
    gradient = torch.ones_like(out)
    gradient[0, 0, 0, 0] = math.nan  # of a cell outside the map
    gradient[1, 0, 1, 1] = math.nan
    (found,) = torch.autograd.grad(out, maps, gradient)
    assert found.isnan().flatten().nonzero().flatten().tolist() == [8]


@each("refine_windows")
@VALUES
def test_a_window_does_not_touch_others(subject: Subject, value: float) -> None:
    top_down = TopDownPass(torch.float32, device=subject.device)
    clean = top_down(backend=subject.backend)
    top_down.encoding[2] = value
    out = top_down(backend=subject.backend)
    others = [0, 1, 3, 4, 5, 6]
    assert torch.equal(out[others], clean[others])
    if math.isnan(value):
        assert not out[2].isfinite().all()
