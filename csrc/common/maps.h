// Feature maps as the kernels of all backends take them.
#pragma once

#include <cstdint>

namespace sharpmask {

struct Strides {  // in elements
    std::int64_t batch, channel, row, col;
};

struct Map {  // (batch, channels, height, width)
    const void* data;
    std::int64_t height, width;
    Strides strides;
};

}  // namespace sharpmask
