// Pixels of a map as the columns of a matrix whose rows are channels.
#pragma once

#include <algorithm>
#include <cstdint>

#include "bands.h"
#include "maps.h"
#include "product.h"

namespace sharpmask::SHARPMASK_ISA {

// The pixels of a part, counted row by row, image by image.
struct Pixels {
    Part part;
    int64_t width;

    int64_t count() const { return part.images * part.rows() * width; }

    // Calls body(offset of the first, count, index of the first) for each stretch of the pixels [begin, end)
    // that lie evenly spaced in the map.
    template <class Body>
    void stretches(const TypedMap& m, int64_t channel, int64_t begin, int64_t end, const Body& body) const {
        const Strides& s = m.strides;
        const int64_t rows = part.rows();
        const bool even = s.row == width * s.col;
        const int64_t length = even ? rows * width : width;
        for (int64_t pixel = begin, count; pixel < end; pixel += count) {
            const int64_t line = pixel / length, x = pixel % length;
            count = std::min(length - x, end - pixel);
            const int64_t image = part.image + (even ? line : line / rows);
            const int64_t y = part.top + (even ? 0 : line % rows);
            body(image * s.batch + channel * s.channel + y * s.row + x * s.col, count, pixel);
        }
    }
};

// The memory to prefetch for the pixels from p on: nothing if neither pixels nor channels lie side by side.
template <class T>
Ahead ahead(const TypedMap& m, const Pixels& all, int64_t channel, int64_t channels, int64_t p,
            int64_t pixels) {
    const Strides& s = m.strides;
    const int64_t size = bytes_of(m.dtype);
    channels = std::min(channels, m.channels - channel);
    if (channels <= 0 || (s.col != 1 && s.channel != 1)) return {};
    Ahead next = s.col == 1 ? Ahead(channels, s.channel * size) : Ahead(pixels, s.col * size);
    all.stretches(m, channel, p, std::min(p + pixels, all.count()),
                  [&](int64_t offset, int64_t count, int64_t pixel) {
                      const char* begin = static_cast<const char*>(m.data) + offset * size;
                      if (s.col == 1) {
                          next.add(begin, count * size);
                      } else if (pixel == p) {  // usually all are as far apart
                          next.add(begin, channels * size);
                      }
                  });
    return next;
}

// The length of a row that holds so many pixels. It is not a power of 2, so that rows do not compete for the
// same lines of the cache.
template <class T>
int64_t step_for(int64_t pixels) {
    return (room_for_columns<T>(pixels) / lanes<T> | 1) * lanes<T> + 2 * lanes<T>;
}

}  // namespace sharpmask::SHARPMASK_ISA
