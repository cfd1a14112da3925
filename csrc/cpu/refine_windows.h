// The cascade of refinement modules on top-N windows: see sharpmask_kernels.refine_windows.
#pragma once

#include <cstdint>
#include <vector>

#include "../common/half.h"
#include "../common/maps.h"
#include "../common/windows.h"

namespace sharpmask {

struct Layer {           // of a 3x3 convolution, in fp32, or fp64 where the maps are
    const void* weight;  // (outputs, inputs, 3, 3), dense
    const void* bias;    // (outputs); null in refine_windows: zeros
    std::int64_t inputs, outputs;
};

struct RefineWindows {
    DType dtype;  // of encoding and horizontals
    Map encoding;
    std::vector<Map> horizontals;  // scale 0 stage 0, scale 0 stage 1, ...
    std::int64_t batch;            // of horizontals
    Windows windows;
    std::vector<Layer> layers;        // of all stages, then the head
    std::vector<std::int64_t> convs;  // layers of each stage
    bool nearest, zeros;              // the upsampling is not bilinear, the padding is not "replicate"
    bool bits;                        // whether `logit > limit` is wanted, packed along x
    double limit;
    void* out;
    Strides strides;  // of out; it has no channels
    int threads;
};

// The windows in the order of their places: neighbours read much the same cells, which are in the cache then.
std::vector<std::int64_t> by_place(const Windows& windows);

}  // namespace sharpmask
