// The windows of maps and their gradient: see sharpmask_kernels.gather_windows.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "../common/tensor_view.h"
#include "../common/windows.h"

namespace sharpmask::cuda {

// Writes all of `out` (windows, channels, size, size), dense, contiguous or channels_last. Elements of 2 or 4
// bytes are copied, whatever their type.
void gather_windows(const std::vector<TensorView>& maps, const Windows& windows, std::int64_t step,
                    const TensorView& out, void* stream);

// Writes all of every gradient asked for, dense, contiguous or channels_last: at each cell the sum of `grad`
// (windows, channels, size, size) over the windows that cover it, in their order, in fp32.
void gather_windows_backward(const TensorView& grad, const Windows& windows, std::int64_t step,
                             const std::vector<std::optional<TensorView>>& gradients, void* stream);

}  // namespace sharpmask::cuda
