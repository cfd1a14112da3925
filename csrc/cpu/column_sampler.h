// A window's logits sampled at the pixels of an image and compared with a limit, column by column.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "typed_map.h"

namespace sharpmask {

// Where consecutive pixels of an axis sample a window's logits, in the arithmetic of
// windows.sample_positions.
struct Samples {
    std::int64_t start = 0;         // the first pixel
    std::vector<std::int64_t> low;  // of each pixel: the logit before it
    std::vector<double> fraction;   // and the share of the one after it

    std::int64_t count() const { return static_cast<std::int64_t>(low.size()); }
};

class ColumnSampler {
  public:
    virtual ~ColumnSampler();

    // Chooses the window whose columns are asked for from now on, and their pixels, at least one.
    virtual void start(std::int64_t window, const Samples& vertical) = 0;

    // bits[p / 64] >> p % 64 & 1: whether the sample at pixel p is above the limit, in fp64 arithmetic. The
    // samples lie between the columns of logits `low` and the next. Beyond the last pixel the bits are 0.
    virtual void column(std::int64_t low, double fraction, std::uint64_t* bits) = 0;
};

}  // namespace sharpmask
