// The top-N gather and its gradient: see sharpmask_kernels.gather_windows.
#pragma once

#include <cstdint>
#include <vector>

#include "../common/half.h"
#include "../common/maps.h"
#include "../common/windows.h"

namespace sharpmask::cuda {

// Writes all of `out` (windows, channels, size, size), dense, contiguous or channels_last.
// Elements of 2 or 4 bytes are copied without a look at their value.
void gather_windows(const std::vector<Map>& maps, const Windows& windows, std::int64_t batch,
                    std::int64_t channels, std::int64_t size, std::int64_t step, std::int64_t element_size,
                    bool channels_last, void* out, void* stream);

// Writes all of every gradient asked for, contiguous or channels_last: at each cell the sum of `grad`
// (windows, channels, size, size) over the windows that cover it, in their order, in fp32.
void gather_windows_backward(const void* grad, const Strides& strides, DType dtype, const Windows& windows,
                             std::int64_t batch, std::int64_t channels, std::int64_t size, std::int64_t step,
                             const std::vector<MapGradient>& gradients, bool channels_last, void* stream);

}  // namespace sharpmask::cuda
