// The top-down pass of top-N windows: see sharpmask_kernels.refine_windows.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "../common/windows.h"
#include "typed_map.h"

namespace sharpmask {

struct RefineWindows {
    TypedMap encoding;
    std::vector<TypedMap> horizontals;  // scale 0 stage 0, scale 0 stage 1, ...
    Windows windows;
    std::vector<TensorView> weights;  // of the convolutions of all stages, then of the head
    std::vector<std::optional<TensorView>> biases;
    std::vector<std::int64_t> convs;  // how many convolutions each stage has
    bool nearest, zeros;              // the upsampling is not bilinear, the padding is not "replicate"
    std::optional<double> limit;      // the bits of `logit > limit` are wanted, packed along x
    TensorView out;                   // (windows, side, side), or bits (windows, side, ceil(side / 8))
    int threads;
};

// The windows in the order of their places. Neighbours read mostly the same cells, which are then in the
// cache.
std::vector<std::int64_t> by_place(const Windows& windows);

}  // namespace sharpmask
