"""Freed memory is given back where the C library can."""

from __future__ import annotations

import ctypes
import sys

import pytest
import torch

from sharpmask.models import inference, memory
from sharpmask.models.inference import Halves, InferenceForm, InferenceTrunk, PlainHeads, made


def form(wide: bool = True) -> InferenceForm:
    halves = Halves(lambda image: 2 * image, lambda image: [image]) if wide else None
    trunk = InferenceTrunk((0, 0), torch.zeros(3, 1, 1), lambda image: [image, 2 * image], halves)
    return InferenceForm(trunk, 0, PlainHeads(lambda taps: (taps[0], taps[0])))


def test_it_is_given_back_around_large_pictures_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[None] = []
    monkeypatch.setattr(inference, "release_freed", lambda: calls.append(None))
    form()(torch.zeros(1, 3, 400, 600))
    form(wide=False)(torch.zeros(1, 3, 500, 600))
    assert not calls
    form()(torch.zeros(1, 3, 500, 600))
    assert len(calls) == 2


def test_the_finest_map_of_a_large_picture_is_computed_when_it_is_wanted() -> None:
    small, large = torch.ones(1, 3, 400, 600), torch.ones(1, 3, 500, 600)
    for picture in (small, large):
        taps = form()(picture).taps
        assert callable(taps[1]) == (picture is large)
        assert all(torch.equal(made(tap), factor * picture) for factor, tap in enumerate(taps, 1))


def test_other_c_libraries_keep_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    memory._trim.cache_clear()
    memory.release_freed()
    monkeypatch.undo()
    memory._trim.cache_clear()
    assert (memory._trim() is not None) == hasattr(ctypes.CDLL(None), "malloc_trim") or sys.platform == "win32"
    memory.release_freed()
