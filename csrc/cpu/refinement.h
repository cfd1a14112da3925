// What merge_upsample, add_upsample and refine are made of, forward and backward: see sharpmask_kernels.ops.
// All weights are dense, in fp32, or fp64 where the maps are; so are the gradients of weights.
#pragma once

#include <cstdint>
#include <vector>

#include "../common/half.h"
#include "../common/maps.h"
#include "refine_windows.h"

namespace sharpmask {

struct MapOf {  // a map and its dtype and channels; data is null where there is none
    DType dtype;
    Map map;
    std::int64_t channels;
};

// out = ReLU(conv(joined inputs) + addend), or that upsampled, or, where `mask` is there, the convolution's
// result where `mask` is above 0.
struct Convolve {
    std::int64_t batch, height, width;
    std::vector<MapOf> inputs;  // one, or two whose channels are joined
    MapOf addend, mask;
    Layer layer;
    bool zeros;
    bool relu, upsampled, nearest;
    MapOf out;
    std::uint8_t*
        active;  // one bit per value that ReLU let through, (batch, outputs, height, bytes), or null
    int threads;
};

// The gradient before ReLU and upsample: `grad` (batch, channels, 2 height, 2 width) to `out`, fp32 or fp64.
struct BeforeRelu {
    std::int64_t batch, height, width;
    MapOf grad;
    const std::uint8_t* active;
    bool nearest;
    MapOf out;
    int threads;
};

// The gradient of a convolution's input: `layer` has the weight turned round, its outputs the input's
// channels.
struct InputGradient {
    std::int64_t batch, height, width;
    MapOf grad;  // as BeforeRelu gives it
    Layer layer;
    bool zeros;
    MapOf relu;  // the input, if a ReLU made it whose gradient this is to pass, too
    MapOf out;
    int threads;
};

// The gradients of a convolution's weight (outputs, inputs, 3, 3) and bias (outputs).
struct WeightGradient {
    std::int64_t batch, height, width;
    MapOf grad;  // as BeforeRelu gives it
    std::vector<MapOf> inputs;
    bool zeros;
    void* weight;
    void* bias;
    int threads;
};

}  // namespace sharpmask
