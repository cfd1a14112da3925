"""The same bits run after run, forward and backward; of a backend's own kernels, for any number of threads."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from sharpmask_kernels import self_check

from .inputs import SCATTERED, Random, TopDownPass, arguments, channels_last, windows_at
from .subjects import REFINEMENT, Subject, each


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def outcome(subject: Subject) -> list[Tensor]:
    """Output and gradients of one call."""
    size = (1, 5, 6) if subject.interpreted else (4, 33, 41)
    random = Random(torch.float32, seed=5, device=subject.device)
    if subject.op in REFINEMENT:
        inputs = [x.requires_grad_() for x in arguments(subject.op, random, size, (5, 4, 3))]
        out = subject(*inputs)
    elif subject.op == "gather_windows":
        inputs = [random(2, 3, *size[1:]).requires_grad_(), channels_last(random(2, 3, 9, 5)).requires_grad_()]
        windows = windows_at(*SCATTERED * (3 if subject.interpreted else 30), device=subject.device)
        out = subject(inputs, windows, 4)
    elif subject.op == "refine_windows":
        return [TopDownPass(torch.float32, device=subject.device, count=70)(backend=subject.backend)]
    elif subject.op == "encode_windows":
        encoded = subject(random(5, 32, 32), windows_at(*SCATTERED[:5], device=subject.device), (70, 90), [0.5, 1.0])
        return [torch.tensor(list(rle["counts"])) for rle in encoded]
    else:  # an op without larger inputs of its own here
        return list(outcomes_of_self_check(subject, random))
    return [out.detach(), *torch.autograd.grad(out, inputs, random(*out.shape))]


def outcomes_of_self_check(subject: Subject, random: Random) -> Iterator[Tensor]:
    """Outputs and gradients of the op's cases for the self-check."""
    cases = self_check.cases(subject.op, random, torch.device(subject.device))
    # One that is small: an interpreter takes a minute for others.
    for _, case in itertools.islice(cases, 3, 4) if subject.interpreted else cases:
        inputs = [x.float().requires_grad_() for x in case.inputs]
        out = case.run(subject.backend, *inputs)
        yield out.detach()
        if out.requires_grad:
            yield from torch.autograd.grad(out, inputs, random(*out.shape))


@each()
def test_the_same_bits_again(subject: Subject) -> None:
    first = outcome(subject)
    for _ in range(1 if subject.interpreted else 100 if subject.device == "cuda" else 5):
        assert all(torch.equal(x, y) for x, y in zip(outcome(subject), first, strict=True))


@each(own=True)
@pytest.mark.usefixtures("threads")
def test_the_same_bits_for_any_number_of_threads(subject: Subject) -> None:
    first = outcome(subject)
    for count in (1, 3) if subject.interpreted else (1, 2, 3, 5):
        torch.set_num_threads(count)
        assert all(torch.equal(x, y) for x, y in zip(outcome(subject), first, strict=True))
