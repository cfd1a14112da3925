// Masks resized, thresholded, pasted into their image and run-length encoded: see
// sharpmask_kernels.encode_windows.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../common/half.h"
#include "../common/maps.h"
#include "../common/windows.h"

namespace sharpmask {

struct Axis {  // of an image
    std::int64_t length;
    std::vector<double> ratios;  // of each scale: the scaled image's length to this one
};

// The COCO counts of each window's logits (windows, side, side), which stand in `logits` like a map of one
// channel. Only scale, row and col of the windows are looked at; one whose scale is out of range is empty.
std::vector<std::string> encode_windows(DType dtype, const Map& logits, const Windows& windows,
                                        const Axis& vertical, const Axis& horizontal, double limit,
                                        int threads);

}  // namespace sharpmask
