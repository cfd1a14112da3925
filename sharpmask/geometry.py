"""Facts about windows that models, training data and search share.

The grid of windows over an image is in :mod:`sharpmask_kernels.windows`.
"""

from __future__ import annotations

from typing import Final

CANONICAL: Final = 128 / 224
"""Longest side of an object that fits its window, as a share of the window's side (DeepMask, section 4)."""
POSITIVE_DISTANCE: Final = 11.5
"""Largest distance in pixels between the centres of an object and of a window that is a positive example of it."""
POSITIVE_OCTAVES: Final = 0.45
"""Largest difference in octaves between the object's longest side and ``CANONICAL`` times the window's side."""
GREY: Final = 0.5
"""Value of pixels that show no image, on the scale from 0 to 1, before normalisation."""
GREY_BYTE: Final = 128
"""The same of 8-bit pixels."""
