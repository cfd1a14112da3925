// What merge_upsample, add_upsample and refine are made of, forward and backward: see sharpmask_kernels.ops.
//
// A weight is (outputs, inputs, 3, 3) and a bias is (outputs); both may have any strides and any dtype of a
// map. Gradients of weights and biases are dense, in fp32, or in fp64 for fp64 maps. `zeros`: the padding is
// "zeros", else "replicate". `nearest`: the upsampling is "nearest", else "bilinear".
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "typed_map.h"

namespace sharpmask {

// out = upsample2x(ReLU(conv(joined inputs) + addend)).
struct ConvolveUpsample {
    std::vector<TypedMap> inputs;  // their channels are joined
    TypedMap addend;               // may have no data
    TensorView weight;
    std::optional<TensorView> bias;
    bool zeros, nearest;
    TypedMap out;
    // One bit for every activation that ReLU let through, (batch, outputs, height, ceil(width / 8)); or null.
    std::uint8_t* active;
    int threads;
};

// out = upsample2x(ReLU(sum)), after a convolution that another kernel has computed.
struct ReluUpsample {
    TypedMap sum;  // in fp32 or fp64
    bool nearest;
    TypedMap out;
    std::uint8_t* active;  // as in ConvolveUpsample
    int threads;
};

// out: the gradient before ReLU and upsampling.
struct UpsampleGradient {
    TypedMap grad;               // of the upsampled map
    const std::uint8_t* active;  // as in ConvolveUpsample; null: there was no ReLU
    bool nearest;
    TypedMap out;
    int threads;
};

// out: the gradient of a convolution's input.
struct InputGradient {
    TypedMap grad;  // of the convolution's output, in fp32 or fp64
    TensorView weight;
    bool zeros;
    TypedMap relu;  // the input, if a ReLU made it: the gradient is then the one before that ReLU
    TypedMap out;
    int threads;
};

// The gradients of a convolution's weight and bias. Either may be null.
struct WeightGradient {
    TypedMap grad;  // of the convolution's output, in fp32 or fp64
    std::vector<TypedMap> inputs;
    bool zeros;
    void* weight;
    void* bias;
    int threads;
};

// out = ReLU(conv(feature)), for a feature of many channels.
struct FeatureForward {
    TypedMap feature;
    TensorView weight;
    std::optional<TensorView> bias;
    bool zeros;
    TypedMap out;
    int threads;
};

// out: the gradient of the feature.
struct FeatureGradient {
    TypedMap grad;  // of the convolution's output
    TensorView weight;
    bool zeros;
    TypedMap out;
    int threads;
};

}  // namespace sharpmask
