"""Which gradients a backward is asked for, by name: the ``needs`` of the schemas, in the order of the op's inputs."""

from __future__ import annotations

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
