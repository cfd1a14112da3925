// Feature maps as the C++ kernels take them.
#pragma once

#include <cstdint>

#include "../common/half.h"
#include "../common/maps.h"
#include "../common/tensor_view.h"

namespace sharpmask {

// A map with its dtype, batch and channels. Without data: there is no map.
struct TypedMap : Map {
    DType dtype;
    std::int64_t batch, channels;
};

// Of a dense map: whether the channels of a cell lie side by side. Where contiguous and channels_last are the
// same order in memory, either answer may come.
inline bool is_channels_last(const TypedMap& map) { return map.strides.channel == 1; }

inline TypedMap typed_map(const TensorView& v) { return {map_of(v), v.dtype, v.sizes[0], v.sizes[1]}; }

}  // namespace sharpmask
