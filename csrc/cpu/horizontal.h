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

// A part of a convolution of many inputs and outputs, and ReLU. `out` is the part that begins at cell
// (top, left) of the input, which may lie beyond it. The kernel returns whether all results are finite: one
// that is not may have spread to the other cells of its tile.
struct WideForward {
    TypedMap input;
    TensorView weight;
    std::optional<TensorView> bias;
    bool zeros, relu;
    std::int64_t top, left;
    TypedMap out;
    int threads;
    // Whether the part begins at cell (-1, -1) and `out` is without its border, which is added to the cells
    // beside it. The size must be even.
    bool folds = false;
};

// The gradients of its weight and bias, dense and in the input's dtype. Either may be null.
struct WideGradient {
    TypedMap grad;  // of the part that begins at cell (top, left)
    TypedMap input;
    bool zeros;
    std::int64_t top, left;
    void* weight;  // dense, in fp32 or fp64, as the bias
    void* bias;
    int threads;
};

}  // namespace sharpmask
