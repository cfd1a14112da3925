// Masks pasted into their image, as run lengths: see sharpmask_kernels.encode_windows.
#pragma once

#include <cstdint>

#include "../common/half.h"

namespace sharpmask::cuda {

// A window's pixels are read in this many parts, each by a warp.
constexpr int encode_parts = 32;

struct Masks {
    const void* logits;  // (count, side, side)
    std::int64_t count, side;
    std::int64_t strides[3];  // in elements
    const std::int64_t *scale, *row, *col;
};

struct Image {
    std::int64_t height, width;
    std::int64_t scales;
    const double*
        ratios;  // (scales, 2) on the device: the scaled image's height and width as shares of the image's
};

// The edges of every mask: the positions, column by column, at which a run of zeros or ones ends and another
// begins. Without `edges`, writes to `starts` (count, encode_parts) how many there are in each part. With it,
// `starts` tells where those of each part go.
void encode_windows(const Masks& masks, DType dtype, const Image& image, double limit, std::int64_t* starts,
                    std::int64_t* edges, void* stream);

}  // namespace sharpmask::cuda
