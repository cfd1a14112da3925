// Feature maps as kernels on a GPU take them.
#pragma once

#include "../common/maps.h"

namespace sharpmask::cuda {

// Kernels get their maps by value, as parameters: nothing has to be copied to the device first. 4 KB is what
// parameters may take; longer lists go to several launches.
constexpr int maps_per_launch = 64;

struct MapTable {
    Map maps[maps_per_launch];
};

}  // namespace sharpmask::cuda
