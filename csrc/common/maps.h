// Feature maps, and their gradients, as the kernels of all backends take them.
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

struct MapGradient {  // the same, dense; data is null where the gradient is not asked for
    void* data;
    std::int64_t height, width;
};

}  // namespace sharpmask
