// Maps of any dtype and strides, read into rows of fp32 (fp64 for fp64 maps) and written from them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "../../common/half.h"
#include "../typed_map.h"
#include "planes.h"
#include "vector.h"

namespace sharpmask::SHARPMASK_ISA {

// Calls run(T{}) for the type T that maps of this dtype are computed in.
template <class Run>
void in_precision_of([[maybe_unused]] DType dtype, const Run& run) {
#ifdef SHARPMASK_FP64
    if (dtype == DType::float64) return run(double{});
#endif
    run(float{});
}

// Calls body(pointer of the dtype's type) for memory whose values are computed with in T.
template <class T, class Body>
void with_pointer(DType dtype, const void* data, const Body& body) {
    if constexpr (std::is_same_v<T, double>) {
        body(static_cast<const double*>(data));
    } else if (dtype == DType::float16) {
        body(static_cast<const Half*>(data));
    } else if (dtype == DType::bfloat16) {
        body(static_cast<const BFloat16*>(data));
    } else {
        body(static_cast<const float*>(data));
    }
}

// The same for memory that is written.
template <class T, class Body>
void with_pointer(DType dtype, void* data, const Body& body) {
    with_pointer<T>(dtype, static_cast<const void*>(data), [&](auto* from) {
        body(const_cast<std::remove_const_t<std::remove_pointer_t<decltype(from)>>*>(from));
    });
}

// The map without the channels before `channel`.
inline TypedMap from_channel(const TypedMap& map, int64_t channel) {
    TypedMap part = map;
    part.data = static_cast<const char*>(map.data) + channel * map.strides.channel * bytes_of(map.dtype);
    part.channels -= channel;
    return part;
}

// Loads the first `count` lanes of any dtype; the others are 0.
template <class T, class From>
Vector<T> load_some(const From* from, int64_t count) {
    if constexpr (std::is_same_v<T, From>) {
        return load_lanes(from, count);
    } else {
        T all[lanes<T>] = {};
        for (int64_t i = 0; i < std::min<int64_t>(count, lanes<T>); ++i) all[i] = widen(from[i]);
        return load(all);
    }
}

// Reads `Channels` channels, a power of 2, that lie side by side in a cell. Cells are `col` apart.
template <int Channels, class T, class From>
void read_side_by_side(const From* from, int64_t col, int64_t width, T* to, int64_t to_stride) {
    for (int64_t x = 0; x < width; x += lanes<T>, from += lanes<T> * col) {
        const int64_t valid = std::min<int64_t>(lanes<T>, width - x);
        Vector<T> rows[Channels];
        if (std::is_same_v<T, From> && valid == lanes<T> && col == Channels) {
            for (int c = 0; c < Channels; ++c)
                rows[c] = load(reinterpret_cast<const T*>(from) + c * lanes<T>);
        } else {
            T cells[lanes<T> * Channels] = {};
            for (int64_t i = 0; i < valid; ++i) {
                for (int c = 0; c < Channels; ++c) cells[i * Channels + c] = widen(from[i * col + c]);
            }
            for (int c = 0; c < Channels; ++c) rows[c] = load(cells + c * lanes<T>);
        }
        deinterleave_all<T, Channels>(rows);
        for (int c = 0; c < Channels; ++c) store_some(to + c * to_stride + x, rows[c], valid);
    }
}

template <class T, class From>
void read_typed(const From* from, const Strides& s, int64_t channels, int64_t width, T* to,
                int64_t to_stride) {
    if (s.col == 1) {
        for (int64_t c = 0; c < channels; ++c, from += s.channel, to += to_stride) {
            if constexpr (std::is_same_v<T, From>) {
                std::memcpy(to, from, width * sizeof(T));
            } else {
                for (int64_t x = 0; x < width; ++x) to[x] = widen(from[x]);
            }
        }
        return;
    }
    int64_t c = 0;
    const auto read = [&](auto at_once) {
        constexpr int n = at_once;
        for (; s.channel == 1 && c + n <= channels; c += n)
            read_side_by_side<n>(from + c, s.col, width, to + c * to_stride, to_stride);
    };
    read(std::integral_constant<int, 16>());
    read(std::integral_constant<int, 8>());
    read(std::integral_constant<int, 4>());
    read(std::integral_constant<int, 2>());
    for (; c < channels; ++c) {
        for (int64_t x = 0; x < width; ++x) to[c * to_stride + x] = widen(from[c * s.channel + x * s.col]);
    }
}

// Row `y` of an image from column `x` on, of the first `channels` channels: to[channel * to_stride + column].
template <class T>
void read_row(const TypedMap& map, int64_t image, int64_t y, int64_t x, int64_t channels, int64_t width,
              T* to, int64_t to_stride) {
    const Strides& s = map.strides;
    const int64_t offset = image * s.batch + y * s.row + x * s.col;
    with_pointer<T>(map.dtype, map.data,
                    [&](const auto* from) { read_typed(from + offset, s, channels, width, to, to_stride); });
}

template <int Channels, class To, class T>
void write_dense(To* to, int64_t width, const T* from, int64_t from_stride) {
    for (int64_t x = 0; x < width; ++x) {
        for (int c = 0; c < Channels; ++c) to[x * Channels + c] = narrow<To>(from[c * from_stride + x]);
    }
}

// The opposite of read_side_by_side, of any number of channels.
template <class To, class T>
void write_squares(To* to, int64_t col, int64_t channels, int64_t width, const T* from, int64_t from_stride) {
    for (int64_t x = 0; x < width; x += lanes<T>) {
        for (int64_t c = 0; c < channels; c += lanes<T>) {
            Vector<T> square[lanes<T>];
            for (int i = 0; i < lanes<T>; ++i) {
                square[i] = c + i < channels ? load_some<T>(from + (c + i) * from_stride + x, width - x)
                                             : Vector<T>{};
            }
            transpose<T>(square);
            for (int i = 0; i < lanes<T> && x + i < width; ++i) {
                To* cell = to + (x + i) * col + c;
                if constexpr (std::is_same_v<T, To>) {
                    store_some(cell, square[i], channels - c);
                } else {
                    T all[lanes<T>];
                    store(all, square[i]);
                    for (int64_t j = 0; j < std::min<int64_t>(lanes<T>, channels - c); ++j)
                        cell[j] = narrow<To>(all[j]);
                }
            }
        }
    }
}

template <class To, class T>
void write_typed(To* to, const Strides& s, int64_t channels, int64_t width, const T* from,
                 int64_t from_stride) {
    if (s.col == 1) {
        for (int64_t c = 0; c < channels; ++c) {
            for (int64_t x = 0; x < width; ++x) to[c * s.channel + x] = narrow<To>(from[c * from_stride + x]);
        }
        return;
    }
    if (s.channel == 1 && s.col == channels) {
        if (channels == 2) return write_dense<2>(to, width, from, from_stride);
        if (channels == 4) return write_dense<4>(to, width, from, from_stride);
        if (channels == 8) return write_dense<8>(to, width, from, from_stride);
    }
    if (s.channel == 1) return write_squares(to, s.col, channels, width, from, from_stride);
    for (int64_t x = 0; x < width; ++x) {
        for (int64_t c = 0; c < channels; ++c)
            to[c * s.channel + x * s.col] = narrow<To>(from[c * from_stride + x]);
    }
}

// As read_row, but with the channels of a cell side by side: to[column * channels + channel]. `scratch` has
// room for as much in whole vectors.
template <class T>
void read_pixels(const TypedMap& map, int64_t image, int64_t y, int64_t x, int64_t channels, int64_t width,
                 T* to, T* scratch) {
    if (map.strides.channel == 1 && map.strides.col == channels) {
        TypedMap dense = map;
        dense.strides.col = 1;
        return read_row(dense, image, y, x * channels, 1, width * channels, to, 0);
    }
    const int64_t stride = round_up<T>(width);
    read_row(map, image, y, x, channels, width, scratch, stride);
    write_typed(to, Strides{0, 1, 0, channels}, channels, width, scratch, stride);
}

// The opposite of read_row, of a whole row.
template <class T>
void write_row(const TypedMap& map, int64_t image, int64_t y, int64_t channels, int64_t width, const T* from,
               int64_t from_stride) {
    const Strides& s = map.strides;
    const int64_t offset = image * s.batch + y * s.row;
    with_pointer<T>(map.dtype, const_cast<void*>(map.data),
                    [&](auto* to) { write_typed(to + offset, s, channels, width, from, from_stride); });
}

inline int64_t joined_channels(const std::vector<TypedMap>& maps) {
    int64_t sum = 0;
    for (const TypedMap& m : maps) sum += m.channels;
    return sum;
}

// Some maps whose channels are joined, padded for a convolution.
template <class T>
struct JoinedMaps {
    const std::vector<TypedMap>& maps;
    bool zeros;

    // Reads channels [begin, end) of the rows [top - 1, bottom + 1). `to` begins with channel `begin`, row
    // top - 1.
    void read(int64_t image, int64_t begin, int64_t end, int64_t top, int64_t bottom,
              const Planes<T>& to) const {
        int64_t first = 0, done = 0;  // channels of the maps before, channels read
        for (const TypedMap& m : maps) {
            const int64_t from = std::max(begin, first) - first;
            const int64_t count = std::min(end, first + m.channels) - first - from;
            if (count > 0) {
                const TypedMap part = from_channel(m, from);
                for (int64_t y = top - 1; y <= bottom; ++y)
                    read_padded_row(part, image, count, y, to.row(done, y - top), to);
                done += count;
            }
            first += m.channels;
        }
    }

  private:
    void read_padded_row(const TypedMap& map, int64_t image, int64_t count, int64_t y, T* cells,
                         const Planes<T>& to) const {
        const int64_t width = map.width;
        const bool beyond = y < 0 || y >= map.height;
        if (!beyond || !zeros) {
            const int64_t nearest = std::clamp<int64_t>(y, 0, map.height - 1);
            read_row(map, image, nearest, 0, count, width, cells, to.plane);
        }
        for (int64_t c = 0; c < count; ++c, cells += to.plane) {
            if (beyond && zeros) std::fill_n(cells, width, T{0});
            cells[-1] = zeros ? T{0} : cells[0];
            cells[width] = zeros ? T{0} : cells[width - 1];
        }
    }
};

// Compiled once, in maps.cpp: most kernels read and write rows.
extern template void read_typed(const float*, const Strides&, int64_t, int64_t, float*, int64_t);
extern template void read_typed(const double*, const Strides&, int64_t, int64_t, double*, int64_t);
extern template void read_row<float>(const TypedMap&, int64_t, int64_t, int64_t, int64_t, int64_t, float*,
                                     int64_t);
extern template void read_row<double>(const TypedMap&, int64_t, int64_t, int64_t, int64_t, int64_t, double*,
                                      int64_t);
extern template void write_row<float>(const TypedMap&, int64_t, int64_t, int64_t, int64_t, const float*,
                                      int64_t);
extern template void write_row<double>(const TypedMap&, int64_t, int64_t, int64_t, int64_t, const double*,
                                       int64_t);
extern template void write_typed(float*, const Strides&, int64_t, int64_t, const float*, int64_t);
extern template void write_typed(Half*, const Strides&, int64_t, int64_t, const float*, int64_t);
extern template void write_typed(BFloat16*, const Strides&, int64_t, int64_t, const float*, int64_t);
extern template void write_typed(double*, const Strides&, int64_t, int64_t, const double*, int64_t);

}  // namespace sharpmask::SHARPMASK_ISA
