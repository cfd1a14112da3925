// A tensor as Python hands it over. It owns nothing: the caller holds the tensor until the call returns.
#pragma once

#include <array>
#include <cstdint>

#include "half.h"
#include "maps.h"

namespace sharpmask {

// A tensor of up to four dimensions. What follows from a view, such as the number of channels, is not passed
// beside it.
struct TensorView {
    static constexpr int most_dimensions = 4;

    void* data = nullptr;
    DType dtype = DType::float32;
    int rank = 0;
    std::array<std::int64_t, most_dimensions> sizes{}, strides{};  // strides in elements
};

// Of a tensor (batch, channels, height, width).
inline Map map_of(const TensorView& v) {
    return {v.data, v.sizes[2], v.sizes[3], {v.strides[0], v.strides[1], v.strides[2], v.strides[3]}};
}

// Of a dense tensor (batch, channels, height, width): whether the channels of a cell lie side by side. Where
// contiguous and channels_last are the same order in memory, either answer may come.
inline bool is_channels_last(const TensorView& v) { return v.strides[1] == 1; }

}  // namespace sharpmask
