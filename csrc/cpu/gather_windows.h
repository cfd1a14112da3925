// The top-N gather and its gradient: see sharpmask_kernels.gather_windows.
#pragma once

#include <cstdint>
#include <vector>

#include "../common/windows.h"
#include "typed_map.h"

namespace sharpmask {

// Writes all of `out` (windows, channels, size, size), dense, contiguous or channels_last. Elements are
// copied without a look at their value.
void gather_windows(const std::vector<TypedMap>& maps, const Windows& windows, std::int64_t step,
                    const TypedMap& out, int threads);

// Writes all of every gradient that has data, dense, contiguous or channels_last. A cell's gradient is the
// sum of `grad` (windows, channels, size, size) over the windows that cover it, in their order and rounded
// once. Hence the bits are the same for any number of threads.
void gather_windows_backward(const TypedMap& grad, const Windows& windows, std::int64_t step,
                             const std::vector<TypedMap>& gradients, int threads);

}  // namespace sharpmask
