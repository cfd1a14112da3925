"""Texts that errors and messages share."""

from __future__ import annotations

import pytest

from sharpmask.errors import counted


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((0, "photo"), "0 photos"),
        ((1, "photo"), "1 photo"),
        ((2, "photo"), "2 photos"),
        ((1, "batch", "batches"), "1 batch"),
        ((3, "batch", "batches"), "3 batches"),
    ],
)
def test_what_is_counted_is_in_the_singular_or_plural(words: tuple[int, str], said: str) -> None:
    assert counted(*words) == said
