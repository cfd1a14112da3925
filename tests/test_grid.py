"""The selection of combinations that tests marked grid run with."""

from __future__ import annotations

import itertools

import pytest

from .grid import covering


def pairs(combinations: list[tuple[int, ...]]) -> set[tuple[tuple[int, int], ...]]:
    return {pair for values in combinations for pair in itertools.combinations(enumerate(values), 2)}


@pytest.mark.parametrize("sizes", [(4, 4, 7), (3, 2, 2, 2, 3, 2), (2, 5), (3,)])
def test_every_two_values_meet(sizes: tuple[int, ...]) -> None:
    whole = list(itertools.product(*map(range, sizes)))
    chosen = [whole[i] for i in covering(whole)]
    assert pairs(chosen) == pairs(whole)
    first, second = sorted([1, *sizes])[:-3:-1]
    # As few as can be are the product of the two largest numbers of values.
    assert first * second <= len(chosen) <= 1.5 * first * second


def test_parameters_that_are_given_together_stay_together() -> None:
    whole = [(a, a, b) for a in range(3) for b in range(2)]
    assert covering(whole) == set(range(6))
