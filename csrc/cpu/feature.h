// The 3x3 convolution of a feature, of many channels, to a skip of few, forward and backward: see
// sharpmask_kernels.refine.
#pragma once

#include <cstdint>

#include "refinement.h"

namespace sharpmask {

struct FeatureConvolution {
    std::int64_t batch, height, width;
    MapOf feature;  // or, to be written, its gradient
    MapOf skip;     // ReLU(conv(feature)), to be written; or the gradient before that ReLU
    Layer layer;
    bool zeros;
    int threads;
};

}  // namespace sharpmask
