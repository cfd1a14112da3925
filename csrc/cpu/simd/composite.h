// Composite weights: a 3x3 convolution after a x2 upsampling as one before it.
//
// conv(up2(x), w) = pixel_shuffle(conv(x, W), 2) with composite weights W of four phases (a, b),
// W[o, (a, b), i] = sum_kl w[o, i, k, l] U[a, k] (x) U[b, l], where U[a, k] says which cells of x the
// upsampled row 2y + a + k - 1 is made of. x is continued beyond its border by clamping. That is exact for
// "replicate". For "zeros", the taps beyond the upsampled border are left out of W, so that the first and the
// last row and column have weights of their own.
#pragma once

#include <cstdint>
#include <cstring>

#include "vector.h"

namespace sharpmask::SHARPMASK_ISA {

// Which borders of its axis a cell touches: both, if it is the only one.
constexpr int no_border = 0, low_border = 1, high_border = 2, both_borders = 3;
constexpr int border_kinds = 4;

constexpr int borders_at(int64_t i, int64_t length) {
    return (i == 0 ? low_border : no_border) | (i == length - 1 ? high_border : no_border);
}

// Whether a cell of an axis of `length` cells touches just these borders.
constexpr bool borders_occur(int borders, int64_t length) {
    return borders == both_borders ? length == 1 : length >= (borders == no_border ? 3 : 2);
}

struct Taps {  // U[phase][tap][cell before upsampling]
    double u[2][3][3];
};

inline Taps upsampling_taps(bool nearest, int borders) {
    constexpr double n[2][3][3] = {{{1, 0, 0}, {0, 1, 0}, {0, 1, 0}}, {{0, 1, 0}, {0, 1, 0}, {0, 0, 1}}};
    constexpr double b[2][3][3] = {{{.75, .25, 0}, {.25, .75, 0}, {0, .75, .25}},
                                   {{.25, .75, 0}, {0, .75, .25}, {0, .25, .75}}};
    Taps taps;
    std::memcpy(taps.u, nearest ? n : b, sizeof taps.u);
    if (borders & low_border) std::memset(taps.u[0][0], 0, sizeof taps.u[0][0]);
    if (borders & high_border) std::memset(taps.u[1][2], 0, sizeof taps.u[1][2]);
    return taps;
}

// The composite weight of a cell on one axis, from three weights that are `step` apart. A tap of 0 is left
// out, so that a weight that is not finite reaches no other cell.
template <class T>
double composite(const T* weights, int step, const double (&taps)[3][3], int cell) {
    double sum = 0;
    for (int k = 0; k < 3; ++k) {
        if (taps[k][cell] != 0) sum += weights[k * step] * taps[k][cell];
    }
    return sum;
}

// Where the weight of input i, tap and row (phase * outputs + o) goes: to[((i * 9 + tap) * rows + row) *
// step].
template <class T>
struct PackedWeights {
    T* to;
    int64_t rows, step;

    T& operator()(int64_t i, int tap, int64_t row) const { return to[((i * 9 + tap) * rows + row) * step]; }
};

// The weight (outputs, inputs, 3, 3) itself.
template <class T>
void pack(const T* weight, int64_t inputs, int64_t outputs, const PackedWeights<T>& to) {
    for (int64_t i = 0; i < inputs; ++i) {
        for (int tap = 0; tap < 9; ++tap) {
            for (int64_t o = 0; o < outputs; ++o) to(i, tap, o) = weight[(o * inputs + i) * 9 + tap];
        }
    }
}

// The composite weights of cells that touch these borders.
template <class T>
void pack_composite(const T* weight, int64_t inputs, int64_t outputs, const Taps& vertical,
                    const Taps& horizontal, const PackedWeights<T>& to) {
    for (int64_t i = 0; i < inputs; ++i) {
        for (int64_t o = 0; o < outputs; ++o) {
            const T* w = weight + (o * inputs + i) * 9;
            double across[3][2][3];  // of every row of taps, phase and cell
            for (int row = 0; row < 3; ++row) {
                for (int b = 0; b < 2; ++b) {
                    for (int x = 0; x < 3; ++x)
                        across[row][b][x] = composite(w + row * 3, 1, horizontal.u[b], x);
                }
            }
            for (int phase = 0; phase < 4; ++phase) {
                for (int tap = 0; tap < 9; ++tap) {
                    const double sum =
                        composite(&across[0][phase % 2][tap % 3], 6, vertical.u[phase / 2], tap / 3);
                    to(i, tap, phase * outputs + o) = static_cast<T>(sum);
                }
            }
        }
    }
}

}  // namespace sharpmask::SHARPMASK_ISA
