// A chain of 3x3 convolutions with ReLU between them: see sharpmask_kernels.horizontal.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "typed_map.h"

namespace sharpmask {

// Of the result, only tiles of `tile` x `tile` cells that are `needed`, (batch, rows, cols) of bool, are
// written; all, if it has no data.
struct Horizontal {
    TypedMap feature;
    std::vector<TensorView> weights;  // (outputs, inputs, 3, 3), with any strides and dtype of a map
    std::vector<std::optional<TensorView>> biases;
    bool zeros;  // the padding is not "replicate"
    std::optional<TensorView> needed;
    std::int64_t tile;
    bool relu;  // after the last convolution too
    TypedMap out;
    int threads;
};

}  // namespace sharpmask
