// Where windows lie on a map.
#pragma once

#include <algorithm>
#include <cstdint>

namespace sharpmask {

// `count` windows: index into the batch, index of the map, first grid cell.
struct Windows {
    std::int64_t count;
    const std::int64_t* image;
    const std::int64_t* scale;
    const std::int64_t* row;
    const std::int64_t* col;
};

// A window's first map cell, with `step` map cells per grid cell. It is clamped to about 2^40, which is
// beyond any map, so that no value of `cell` or `step` overflows.
constexpr std::int64_t window_start(std::int64_t cell, std::int64_t step) {
    constexpr std::int64_t far = std::int64_t{1} << 40;
    return std::clamp(cell, -far / step - 1, far / step + 1) * std::min(step, far);
}

// The cells [begin, end) of a window's side that lie on a map of `length` cells; begin == end if none does.
struct Span {
    std::int64_t begin, end;
};

constexpr Span inside(std::int64_t start, std::int64_t size, std::int64_t length) {
    const std::int64_t begin = std::clamp<std::int64_t>(-start, 0, size);
    return {begin, std::clamp<std::int64_t>(length - start, begin, size)};
}

}  // namespace sharpmask
