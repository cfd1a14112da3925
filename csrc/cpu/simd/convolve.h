// A convolution of whole maps, with what follows it.
#pragma once

#include <vector>

#include "../typed_map.h"
#include "conv3x3.h"

namespace sharpmask::SHARPMASK_ISA {

// out = upsample2x(ReLU(conv(joined inputs) + addend)) if `upsampled`; else the convolution's result, and 0
// where `mask` is not above 0.
struct Convolve {
    std::vector<TypedMap> inputs;
    TypedMap addend, mask;  // may have no data
    bool zeros, upsampled, nearest;
    TypedMap out;
    std::uint8_t* active;  // see ConvolveUpsample
    int threads;
};

template <class T>
void convolve(const Convolve& arguments, const Conv3x3<T>& conv);

}  // namespace sharpmask::SHARPMASK_ISA
