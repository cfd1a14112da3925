// Rows after a convolution: the bits of ReLU, and the upsampling by two.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "../typed_map.h"
#include "vector.h"

namespace sharpmask::SHARPMASK_ISA {

// One bit per value that ReLU lets through, NaN among them.
template <class T>
void write_active(const T* sums, int64_t width, std::uint8_t* to) {
    for (int64_t x = 0; x < width; x += 8) {
        unsigned bits = 0;
        for (int64_t i = 0; i < 8 && x + i < width; ++i) bits |= unsigned{!(sums[x + i] <= 0)} << i;
        to[x / 8] = static_cast<std::uint8_t>(bits);
    }
}

// Calls put(place, vector) with the row that is made of `near` and of `far`, the row on its other side. Both
// have a cell more at either end.
template <class T, class Put>
void upsample_row(const T* near, const T* far, bool nearest, int64_t width, const Put& put) {
    for (int64_t x = 0; x < width; x += lanes<T>) {
        const auto at = [&](int64_t cell) {
            const Vector<T> v = load(near + cell);
            return nearest ? v : three_to_one<T>(v, load(far + cell));
        };
        Vector<T> even = at(x), odd = even;
        if (!nearest) {
            odd = three_to_one<T>(even, at(x + 1));
            even = three_to_one<T>(even, at(x - 1));
        }
        const Pair<Vector<T>> pair = interleave<T>(even, odd);
        put(2 * x, pair.first);
        put(2 * x + lanes<T>, pair.second);
    }
}

// Whether a map is more than a cache keeps until it is read, so that it pays to stream it to memory.
inline bool exceeds_caches(const TypedMap& map) {
    constexpr int64_t bytes_of_a_cache = 2 << 20;  // a core's second
    return map.batch * map.channels * map.height * map.width * bytes_of(map.dtype) >= bytes_of_a_cache;
}

// Whether its rows can be streamed: they must be made of whole vectors.
template <class T>
bool can_stream_rows(const TypedMap& map) {
    const Strides& s = map.strides;
    const auto whole = [](int64_t count) { return count % lanes<T> == 0; };
    return exceeds_caches(map) && bytes_of(map.dtype) == sizeof(T) && s.col == 1 && whole(s.batch) &&
           whole(s.channel) && whole(s.row) && whole(map.width) &&
           reinterpret_cast<std::uintptr_t>(map.data) % vector_bytes == 0;
}

// By pixels: the channels of a cell lie side by side and fill vectors.

constexpr int64_t pixel_channels = 64;  // at once, so that a few rows of them stay in the second cache

inline int64_t pixel_parts(int64_t channels) { return (channels + pixel_channels - 1) / pixel_channels; }

// Some channels of a map.
template <class T>
struct PixelPart {
    int64_t begin, count;
    int64_t step = round_up<T>(count);  // from one pixel to the next

    PixelPart(int64_t part, int64_t channels)
        : begin(part * pixel_channels), count(std::min(channels - begin, pixel_channels)) {}
};

// The bits of up to eight pixels in every lane of a vector.
template <class T>
using PixelBits = Vector<std::conditional_t<sizeof(T) == 8, std::int64_t, std::int32_t>, lanes<T>>;

// The place of the bits of a row of a channel. `map`: of the activations
template <class Bits>
Bits* active_row(Bits* active, const TypedMap& map, int64_t image, int64_t y, int64_t channel) {
    return active + ((image * map.channels + channel) * map.height + y) * ((map.width + 7) / 8);
}

}  // namespace sharpmask::SHARPMASK_ISA
