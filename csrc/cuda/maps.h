// Feature maps as the launchers take them, and as the kernels do.
#pragma once

#include <cstdint>

namespace sharpmask::cuda {

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

// Kernels get their maps by value, as parameters: nothing has to be copied to the device first. 4 KB is what
// parameters may take; longer lists go to several launches.
constexpr int maps_per_launch = 64;

struct MapTable {
    Map maps[maps_per_launch];
};

}  // namespace sharpmask::cuda
