// 3x3 convolutions of many inputs and outputs, and their gradients: see simd/winograd.h. A weight is
// (outputs, inputs, 3, 3) and a bias is (outputs); both may have any strides and any dtype of a map, and so
// may maps.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "decoder.h"
#include "typed_map.h"

namespace sharpmask {

// One of the maps that a convolution reads.
struct JoinedMap {
    TypedMap map;
    std::int64_t channel = 0;                   // of the weight's inputs, where the map's begin
    std::optional<Upsampling> upsampling = {};  // of the map, before the convolution
};

// out = activation(conv(joined inputs)), of the part that begins at cell (top, left) of the inputs, which may
// lie beyond them. If an input is upsampled, all of the convolution is computed.
struct WideForward {
    std::vector<JoinedMap> inputs;
    TensorView weight;
    std::optional<TensorView> bias;
    bool zeros;  // the padding is not "replicate"
    Activation activation;
    std::int64_t top, left;
    TypedMap out;
    int threads;
    // Whether the part begins at cell (-1, -1) and `out` is without its border, which is added to the cells
    // beside it. The size must be even.
    bool folds = false;
};

// The gradients of the weight's inputs that read `input`, and of the bias, in fp32 or fp64. Either may have
// no data.
struct WideGradient {
    TypedMap grad;  // before the activation, of the part that begins at cell (top, left)
    JoinedMap input;
    bool zeros;
    std::int64_t top, left;
    TensorView weight;  // (outputs, channels of the input, 3, 3), with any strides
    void* bias;
    int threads;
};

// out: the gradient of an input that is upsampled first.
struct UpsampledGradient {
    TypedMap grad;      // before the activation
    TensorView weight;  // (outputs, channels of the input, 3, 3), with any strides
    Upsampling upsampling;
    bool zeros;
    TypedMap out;
    int threads;
};

}  // namespace sharpmask
