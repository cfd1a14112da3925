// The steps of a decoder that upsamples first: see sharpmask_kernels.upsample_merge and upsample_add.
#pragma once

#include <cstdint>

#include "typed_map.h"

namespace sharpmask {

// To twice the height and width. bilinear_corners: the corners of both maps lie on each other.
enum class Upsampling { nearest, bilinear, bilinear_corners };

enum class Activation { relu, elu, leaky_relu, silu, none };

// out = activation(upsample2x(mask) + lateral).
struct UpsampleAdd {
    TypedMap mask, lateral;
    Upsampling upsample;
    Activation activation;
    TypedMap out;
    int threads;
};

// out = activation(phases in their places + lateral). Where a convolution of an upsampled map was computed as
// four of the small map, phase (a, b), the cells (2y + a, 2x + b) of the result, is found in channels
// (2a + b) * channels and following, at (y + a, x + b): (batch, 4 channels, height + 1, width + 1).
struct JoinPhases {
    TypedMap phases, lateral;  // lateral may have no data, or be `out`
    Activation activation;
    TypedMap out;
    int threads;
};

}  // namespace sharpmask
