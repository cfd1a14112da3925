// How kernels on a GPU take feature maps.
#pragma once

#include "../common/maps.h"

namespace sharpmask::cuda {

// Kernels get their maps by value, as parameters, so nothing has to be copied to the device first. Parameters
// may take 4 KB; longer lists need several launches.
constexpr int maps_per_launch = 64;

struct MapTable {
    Map maps[maps_per_launch];
};

}  // namespace sharpmask::cuda
