"""Which gradients a backward is asked for, by name: the ``needs`` of the schemas, in the order of the op's inputs."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import NamedTuple


class ConvNeeds(NamedTuple):
    """Of one convolution."""

    input: bool
    weight: bool
    bias: bool


class ParameterNeeds(NamedTuple):
    """Of the parameters of one convolution."""

    weight: bool
    bias: bool


class MergeNeeds(NamedTuple):
    """Of ``merge_upsample``."""

    skip: bool
    mask: bool
    weight: bool
    bias: bool


class UpsampleMergeNeeds(NamedTuple):
    """Of ``upsample_merge``."""

    mask: bool
    skip: bool
    weight: bool
    bias: bool

    @property
    def convolution(self) -> ConvNeeds:
        """Of the convolution of both maps."""
        return ConvNeeds(self.mask or self.skip, self.weight, self.bias)


class UpsampleAddNeeds(NamedTuple):
    """Of ``upsample_add``."""

    mask: bool
    lateral: bool


class AddNeeds(NamedTuple):
    """Of ``add_upsample``."""

    horizontal: bool
    mask: bool
    weight: bool
    bias: bool

    @property
    def convolution(self) -> ConvNeeds:
        """Of the convolution of the mask."""
        return ConvNeeds(self.mask, self.weight, self.bias)


class RefineNeeds(NamedTuple):
    """Of ``refine``."""

    feature: bool
    mask: bool
    skip_weight: bool
    skip_bias: bool
    merge_weight: bool
    merge_bias: bool

    @property
    def convolution(self) -> ConvNeeds:
        """Of the convolution of the feature, which makes the skip."""
        return ConvNeeds(self.feature, self.skip_weight, self.skip_bias)

    @property
    def merge(self) -> MergeNeeds:
        """Of the merge: the gradient of the skip leads to all of its convolution."""
        return MergeNeeds(any(self.convolution), self.mask, self.merge_weight, self.merge_bias)


class HorizontalNeeds(NamedTuple):
    """Of ``horizontal``, a chain of convolutions."""

    feature: bool
    weights: Sequence[bool]
    biases: Sequence[bool]

    @classmethod
    def of(cls, needs: Sequence[bool]) -> HorizontalNeeds:
        count = len(needs) // 2
        return cls(needs[0], needs[1 : 1 + count], needs[1 + count :])

    @property
    def first(self) -> int:
        """The first convolution that a gradient has to reach."""
        if self.feature:
            return 0
        return next(i for i, either in enumerate(map(operator.or_, self.weights, self.biases)) if either)

    def input(self, conv: int) -> bool:
        """Whether the gradient of the input of this convolution leads to one that is asked for."""
        return self.feature if conv == 0 else conv > self.first
