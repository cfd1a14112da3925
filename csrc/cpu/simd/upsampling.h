// What upsampled rows are made of, and what the gradients of rows are made of.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

#include "../decoder.h"
#include "vector.h"
#include "winograd.h"

namespace sharpmask::SHARPMASK_ISA {

constexpr int reach = 6;  // upsampled rows whose gradients meet in a row: 2 y - 2 to 2 y + 3

// The share of cell `cell` of an axis of `length` cells in cell `at` of the upsampled axis, which a
// convolution may read beyond its ends.
inline double upsampled_share(Upsampling how, int64_t length, bool zeros, int64_t at, int64_t cell) {
    const int64_t inside = std::clamp<int64_t>(at, 0, 2 * length - 1);
    if (zeros && inside != at) return 0;
    if (how == Upsampling::nearest) return inside / 2 == cell;
    const double place = how == Upsampling::bilinear
                             ? std::clamp(inside / 2.0 - 0.25, 0.0, static_cast<double>(length - 1))
                             : inside * static_cast<double>(length - 1) / static_cast<double>(2 * length - 1);
    return std::max(0.0, 1 - std::abs(place - static_cast<double>(cell)));
}

// Of every cell y of an axis: B' of Winograd times the shares of cells y - 1 to y + 1 in the upsampled cells
// 2 y - 1 to 2 y + 2.
template <class T>
using TileShares = std::array<std::array<T, 3>, 4>;

template <class T>
std::vector<TileShares<T>> tile_shares(Upsampling how, int64_t length, bool zeros) {
    std::vector<TileShares<T>> all(length);
    for (int64_t y = 0; y < length; ++y) {
        for (int cell = 0; cell < 3; ++cell) {
            double x[4];
            for (int i = 0; i < 4; ++i)
                x[i] = upsampled_share(how, length, zeros, 2 * y - 1 + i, y - 1 + cell);
            double turned[4];
            transform_column(x, turned);
            for (int i = 0; i < 4; ++i) all[y][i][cell] = static_cast<T>(turned[i]);
        }
    }
    return all;
}

// Of every cell y of an axis and every tap: with which share the gradient of the convolution's cells 2 y - 2
// to 2 y + 3 reaches cell y through that tap.
template <class T>
using TapShares = std::array<std::array<T, reach>, 3>;

template <class T>
std::vector<TapShares<T>> tap_shares(Upsampling how, int64_t length, bool zeros) {
    std::vector<TapShares<T>> all(length);
    for (int64_t y = 0; y < length; ++y) {
        for (int tap = 0; tap < 3; ++tap) {
            for (int i = 0; i < reach; ++i) {
                const int64_t at = 2 * y - 2 + i;
                const bool inside = at >= 0 && at < 2 * length;
                all[y][tap][i] =
                    static_cast<T>(inside ? upsampled_share(how, length, zeros, at + tap - 1, y) : 0);
            }
        }
    }
    return all;
}

}  // namespace sharpmask::SHARPMASK_ISA
