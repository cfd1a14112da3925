// Masks pasted into their image, as run lengths: see sharpmask_kernels.encode_windows.
#pragma once

#include <cstdint>

#include "../common/tensor_view.h"
#include "../common/windows.h"

namespace sharpmask::cuda {

// A window's pixels are read in this many parts, each by a warp.
constexpr int encode_parts = 32;

struct Image {
    std::int64_t height, width;
    std::int64_t scales;
    // (scales, 2) on the device: height and width of each scaled image as shares of the image's.
    const double* ratios;
};

// Finds the edges of every mask, whose logits are (windows, side, side): the positions, column by column, at
// which a run of zeros or ones ends and another begins. If `edges` is null, writes to `starts` (windows,
// encode_parts) how many there are in each part. If not, `starts` says where in `edges` those of each part
// go.
void encode_windows(const TensorView& logits, const Windows& windows, const Image& image, double limit,
                    std::int64_t* starts, std::int64_t* edges, void* stream);

}  // namespace sharpmask::cuda
