// Masks resized, thresholded, pasted into their image and run-length encoded: see
// sharpmask_kernels.encode_windows.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../common/windows.h"
#include "typed_map.h"

namespace sharpmask {

struct Axis {  // of an image
    std::int64_t length;
    std::vector<double> ratios;  // of each scale: the scaled image's length divided by this one
};

// The COCO counts of each window's logits, given as a map of one channel (windows, 1, side, side). Only
// scale, row and col of the windows are looked at; one whose scale is out of range is empty.
std::vector<std::string> encode_windows(const TypedMap& logits, const Windows& windows, const Axis& vertical,
                                        const Axis& horizontal, double limit, int threads);

}  // namespace sharpmask
