// The arguments of the kernels of refine_windows, and which windows a launch has.
#pragma once

#include "../maps.h"
#include "bands.h"
#include "head.cuh"

namespace sharpmask::cuda {

struct RefineArguments {
    const float* workspace;  // as prepare_kernel or prepare_matrix_kernel wrote it
    int layers;
    Bands bands;
    bool resident;  // all weights stay in shared memory
    const void* encoding;
    Strides strides;
    Windows windows;
    std::int64_t batch;
    int first_scale, scales;  // whose maps this launch has
    int all_scales, stages;
    bool bits;
    float limit;
    void* out;
};

// Whether a window is on a map, and which of the launch's scales it is on; -1: it is another launch's.
// Windows of no map are the first launch's.
struct Known {
    bool known;
    std::int64_t map_scale;
};

__device__ inline Known known_window(const RefineArguments& a, std::int64_t i) {
    const std::int64_t image = a.windows.image[i], scale = a.windows.scale[i];
    const bool known = image >= 0 && image < a.batch && scale >= 0 && scale < a.all_scales;
    const std::int64_t map_scale = known ? scale - a.first_scale : 0;
    return {known, map_scale < 0 || map_scale >= a.scales || (!known && a.first_scale != 0) ? -1 : map_scale};
}

// Where window i's logits or bits go; `side` is the window's.
__device__ inline Result result_of(const RefineArguments& a, std::int64_t i, int side) {
    const std::int64_t bytes =
        side * (a.bits ? (side + 7) / 8 : side * static_cast<std::int64_t>(sizeof(float)));
    return {static_cast<std::uint8_t*>(a.out) + i * bytes, a.bits, a.limit};
}

}  // namespace sharpmask::cuda
