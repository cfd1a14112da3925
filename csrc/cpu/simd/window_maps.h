// What the top-down pass of windows reads, and where it writes.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "../refine_windows.h"
#include "maps.h"
#include "planes.h"

namespace sharpmask::SHARPMASK_ISA {

// The largest T that is not above `limit`: above it lies exactly what lies above `limit`.
template <class T>
T not_above(double limit) {
    const T rounded = static_cast<T>(limit);
    return rounded > limit ? std::nextafter(rounded, -std::numeric_limits<T>::infinity()) : rounded;
}

// Where a window lies on a map. Of no rows, if its scale or image is out of range.
struct Place {
    const TypedMap* map;
    int64_t image = 0, top = 0, left = 0;
    Span cols{0, 0};  // those of the window that lie on the map
};

constexpr TypedMap no_map{};

// Where a window's encoding lies: all of it on its own image.
inline Place encoding_place(const RefineWindows& a, int64_t window) {
    return {&a.encoding, window, 0, 0, {0, a.encoding.width}};
}

// Where a window of `width` cells lies on a horizontal map of its scale.
inline Place horizontal_place(const RefineWindows& a, int64_t window, int64_t stage, int64_t width) {
    const auto stages = static_cast<int64_t>(a.convs.size());
    const int64_t scale = a.windows.scale[window], image = a.windows.image[window];
    if (scale < 0 || scale >= static_cast<int64_t>(a.horizontals.size()) / stages || image < 0 ||
        image >= a.horizontals[0].batch) {
        return {&no_map};
    }
    const TypedMap& map = a.horizontals[scale * stages + stage];
    const int64_t top = window_start(a.windows.row[window], int64_t{1} << stage);
    const int64_t left = window_start(a.windows.col[window], int64_t{1} << stage);
    return {&map, image, top, left, inside(left, width, map.width)};
}

// Asks for a row of a map to be brought into the cache.
inline void fetch_row(const Place& at, int64_t row, int64_t channels) {
    const Strides& s = at.map->strides;
    const int64_t y = at.top + row, x = at.left + at.cols.begin, size = bytes_of(at.map->dtype);
    if (y < 0 || y >= at.map->height || at.cols.begin == at.cols.end) return;
    const bool by_pixel = s.channel == 1 && s.col == channels;
    if (!by_pixel && s.col != 1) return;  // too far apart
    const int64_t bytes = (at.cols.end - at.cols.begin) * s.col * size;
    const char* line =
        static_cast<const char*>(at.map->data) + (at.image * s.batch + y * s.row + x * s.col) * size;
    for (int64_t c = 0; c < (by_pixel ? 1 : channels); ++c, line += s.channel * size) {
        for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(line + i, 0, 2);
    }
}

// Cells of a row of channels: cells[channel * plane + x], or the channels of a pixel side by side.
template <class T>
struct WindowRow {
    const T* cells;
    int64_t plane;
};

// A window's row of a map, zero where the window leaves it: in place if it lies so in memory and `in_place`
// allows, else in `copy`, whose planes are round_up(width) apart. `scratch` has room for as much.
template <class T>
WindowRow<T> read_window(const Place& at, int64_t row, int64_t channels, int64_t width, bool by_pixel,
                         bool in_place, T* copy, T* scratch) {
    const Strides& s = at.map->strides;
    const int64_t col = by_pixel ? channels : 1, y = at.top + row, x = at.left + at.cols.begin;
    const Span cols = y >= 0 && y < at.map->height ? at.cols : Span{0, 0};
    const int64_t count = cols.end - cols.begin;
    const bool lies = s.col == col && (!by_pixel || s.channel == 1) && bytes_of(at.map->dtype) == sizeof(T);
    if (in_place && lies && count == width) {
        return {static_cast<const T*>(at.map->data) + at.image * s.batch + y * s.row + x * s.col, s.channel};
    }
    const WindowRow<T> to{copy, round_up<T>(width)};
    T* begin = copy + cols.begin * col;
    if (count > 0 && by_pixel) {
        read_pixels(*at.map, at.image, y, x, channels, count, begin, scratch);
    } else if (count > 0) {
        read_row(*at.map, at.image, y, x, channels, count, begin, to.plane);
    }
    if (count == width) return to;
    for (int64_t c = 0; c < channels; c += col) {
        T* cells = copy + c * to.plane;
        std::fill(cells, cells + cols.begin * col, T{0});
        std::fill(cells + cols.end * col, cells + width * col, T{0});
    }
    return to;
}

// Writes rows of logits, or of their bits.
template <class T>
class WindowOutput {
  public:
    explicit WindowOutput(const RefineWindows& arguments)
        : a_(arguments), limit_(splat(not_above<T>(arguments.limit.value_or(0)))) {}

    static constexpr int64_t bits_at_once = 64;  // so many values of a line may be read beyond its end

    void write(const T* line, int64_t window, int64_t row, int64_t width) const {
        const int64_t offset = window * a_.out.strides[0] + row * a_.out.strides[1], step = a_.out.strides[2];
        if (a_.limit) return write_bits(line, width, static_cast<std::uint8_t*>(a_.out.data) + offset, step);
        T* to = static_cast<T*>(a_.out.data) + offset;
        if (step == 1 && width % lanes<T> == 0 && reinterpret_cast<std::uintptr_t>(to) % vector_bytes == 0) {
            for (int64_t x = 0; x < width; x += lanes<T>) stream(to + x, load(line + x));
        } else {
            for (int64_t x = 0; x < width; ++x) to[x * step] = line[x];
        }
    }

  private:
    const RefineWindows& a_;
    const Vector<T> limit_;

    void write_bits(const T* line, int64_t width, std::uint8_t* to, int64_t step) const {
        for (int64_t x = 0; x < width; x += bits_at_once) {
            std::uint64_t bits = 0;
            for (int i = 0; i < bits_at_once; i += lanes<T>)
                bits |= std::uint64_t{greater(load(line + x + i), limit_)} << i;
            const int64_t valid = std::min<int64_t>(bits_at_once, width - x);
            bits &= ~std::uint64_t{0} >> (bits_at_once - valid);
            for (int64_t i = 0; i < valid; i += 8, to += step) *to = static_cast<std::uint8_t>(bits >> i);
        }
    }
};

}  // namespace sharpmask::SHARPMASK_ISA
