// A block of expansion, depthwise convolution and projection: see sharpmask_kernels.inverted_residual.
#pragma once

#include <cstdint>
#include <optional>

#include "typed_map.h"

namespace sharpmask {

// Weights may have any strides and any dtype of a map. Without an expansion the input is what the depthwise
// convolution reads.
struct InvertedResidual {
    TypedMap x;
    std::optional<TensorView> expand_weight;  // (hidden, channels, 1, 1)
    std::optional<TensorView> expand_bias;
    TensorView depthwise_weight;  // (hidden, 1, k, k)
    std::optional<TensorView> depthwise_bias;
    TensorView project_weight;  // (outputs, hidden, 1, 1)
    std::optional<TensorView> project_bias;
    std::int64_t stride;
    bool residual;  // x is added to the result
    TypedMap out;
    int threads;
};

}  // namespace sharpmask
