// 3x3 convolutions, row by row, on planes that lie in a core's cache.
#pragma once

#include <algorithm>
#include <cstdint>

#include "composite.h"
#include "planes.h"
#include "vector.h"

namespace sharpmask::SHARPMASK_ISA {

// One convolution and how it is vectorised: along x, with each weight broadcast, or over the outputs, with
// each input broadcast.
template <class T>
class Conv3x3 {
  public:
    // `weight` (outputs, inputs, 3, 3), `bias` (outputs) or null for zeros; neither is needed afterwards.
    // `upsampled`: the input is upsampled first, by composite weights; only then do `nearest` and `zeros`
    // matter, as else the borders of the cells say how they are padded.
    Conv3x3(const T* weight, const T* bias, int64_t inputs, int64_t outputs, int64_t height, int64_t width,
            bool upsampled = false, bool nearest = false, bool zeros = false);

    int64_t inputs, outputs;  // outputs of one phase
    int64_t height, width;    // of the input
    bool upsampled;
    int64_t rows;  // that `row` writes: phases times outputs, and some more to fill vectors

    bool along_x;

    int64_t row_length() const { return round_up<T>(width); }
    int64_t tile_size() const { return along_x ? 1 : row_length() * rows; }

    // Row `y` of the output: all of out[phase * outputs + o], each row_length() long. `from` points at the
    // left border cells of rows y - 1, y, y + 1 of the first channel; those of the next channel are `plane`
    // further on.
    void row(const T* const (&from)[3], int64_t plane, int64_t y, T* out, T* tile) const {
        part_of_row(from, plane, y, 0, inputs, out, tile);
    }

    // Adds the share of the inputs [begin, end), which `from` begins with, to that of the inputs before them,
    // which is in `out`. (Where outputs are vectorised over, it is in `tile`, which must be left alone until
    // the last share.)
    void part_of_row(const T* const (&from)[3], int64_t plane, int64_t y, int64_t begin, int64_t end, T* out,
                     T* tile) const;

    // Where outputs are vectorised over: the same with the outputs of a pixel side by side,
    // tile[x * rows + phase * outputs + o], from cells that are `col` apart.
    void part_of_pixels(const T* const (&from)[3], int64_t col, int64_t plane, int64_t y, int64_t begin,
                        int64_t end, T* tile) const;

  private:
    bool bordered_;
    int64_t set_;  // the size of one set of weights
    Buffer<T> weights_, bias_;

    // The weights of the cells that touch these borders; along x, of the vectors of cells that do.
    T* weights(int vertical, int horizontal) const {
        return weights_.get() + (bordered_ ? vertical * border_kinds + horizontal : 0) * set_;
    }
    void pack_set(const T* weight, bool nearest, int vertical, int horizontal, T* to, int64_t step) const;
    void pack_all(const T* weight, bool nearest);
    void part_along_x(const T* const (&from)[3], int64_t plane, int64_t y, int64_t begin, int64_t end,
                      T* out) const;
};

// The weights of cells that touch these borders, `step` apart.
template <class T>
void Conv3x3<T>::pack_set(const T* weight, bool nearest, int vertical, int horizontal, T* to,
                          int64_t step) const {
    const PackedWeights<T> packed{to, rows, step};
    if (!upsampled) return pack(weight, inputs, outputs, packed);
    pack_composite(weight, inputs, outputs, upsampling_taps(nearest, vertical),
                   upsampling_taps(nearest, horizontal), packed);
}

// Every set of weights that some cell needs.
template <class T>
void Conv3x3<T>::pack_all(const T* weight, bool nearest) {
    const int step = bordered_ && along_x ? lanes<T> : 1;
    const int kinds = bordered_ ? border_kinds : 1;
    for (int vertical = 0; vertical < kinds; ++vertical) {
        if (bordered_ && !borders_occur(vertical, height)) continue;
        for (int horizontal = 0; horizontal < kinds; ++horizontal) {
            T* to = weights(vertical, horizontal);
            if (step == 1) {
                pack_set(weight, nearest, vertical, horizontal, to, 1);
                continue;
            }
            // A vector touches both borders, or one, or none. Each of its lanes is a column and has weights
            // of its own.
            for (int lane = 0; lane < lanes<T>; ++lane) {
                const int64_t end = (width - 1) % lanes<T>;
                const int column = (lane == 0 ? horizontal & low_border : no_border) |
                                   (lane == end ? horizontal & high_border : no_border);
                pack_set(weight, nearest, vertical, column, to + lane, step);
            }
        }
    }
}

template <class T>
Conv3x3<T>::Conv3x3(const T* weight, const T* bias, int64_t inputs, int64_t outputs, int64_t height,
                    int64_t width, bool upsampled, bool nearest, bool zeros)
    : inputs(inputs), outputs(outputs), height(height), width(width), upsampled(upsampled) {
    const int64_t phases = upsampled ? 4 : 1, used = phases * outputs;
    bordered_ = upsampled && zeros;
    // The share of lanes that do something useful decides. With 16 lanes, for SharpMask's 32, 16, 8, 4, 2
    // channels at 10 to 160 cells: 1, 1, 1, 1/2, 1/4 over the outputs, 5/8, 5/8, 5/8, 5/6, 1 along x. Where
    // both are alike, along x has fewer loads for each product.
    const double over_outputs = double(used) / round_up<T>(used);
    const int64_t block = used <= 2 ? 2 : 4, blocked = (used + block - 1) / block * block;
    along_x = double(width) / round_up<T>(width) * used / blocked >= over_outputs;
    rows = along_x ? blocked : round_up<T>(used);
    set_ = inputs * 9 * rows * (along_x && bordered_ ? lanes<T> : 1);
    weights_ = Buffer<T>(set_ * (bordered_ ? border_kinds * border_kinds : 1));
    bias_ = Buffer<T>(rows);
    for (int64_t i = 0; i < used && bias != nullptr; ++i) bias_.get()[i] = bias[i % outputs];
    pack_all(weight, nearest);
}

// Along x: O outputs of V vectors of pixels. PerLane: each lane has a weight of its own, else all share one.
template <class T, int O, int V, bool PerLane>
void accumulate_along_x(const T* const (&from)[3], int64_t plane, int64_t inputs,
                        const T* const (&weights)[V], int64_t step, const T* bias, bool fresh, T* out,
                        int64_t out_stride) {
    constexpr int width = PerLane ? lanes<T> : 1;
    Vector<T> sums[O][V];
#pragma GCC unroll 16
    for (int o = 0; o < O; ++o) {
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v)
            sums[o][v] = fresh ? splat(bias[o]) : load(out + o * out_stride + v * lanes<T>);
    }
    int64_t offset = 0;  // into the weights
    for (int64_t i = 0; i < inputs; ++i) {
        for (int ky = 0; ky < 3; ++ky) {
            const T* cells = from[ky] + i * plane;
            // Not unrolled: the compiler would keep sums in memory to have the next taps' cells at hand.
#pragma GCC unroll 1
            for (int kx = 0; kx < 3; ++kx, offset += step * width) {
                Vector<T> x[V];
#pragma GCC unroll 16
                for (int v = 0; v < V; ++v) x[v] = load(cells + kx + v * lanes<T>);
#pragma GCC unroll 16
                for (int o = 0; o < O; ++o) {
#pragma GCC unroll 16
                    for (int v = 0; v < V; ++v) {
                        const T* w = weights[PerLane ? v : 0] + offset + o * width;
                        if constexpr (PerLane) {
                            sums[o][v] = fma(load(w), x[v], sums[o][v]);
                        } else {
                            sums[o][v] = fma(splat(*w), x[v], sums[o][v]);
                        }
                    }
                }
            }
        }
    }
#pragma GCC unroll 16
    for (int o = 0; o < O; ++o) {
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) store(out + o * out_stride + v * lanes<T>, sums[o][v]);
    }
}

// Over outputs: V vectors of outputs of P pixels.
template <class T, int P, int V>
void accumulate_over_outputs(const T* const (&from)[3], int64_t col, int64_t plane, int64_t inputs,
                             const T* weights, int64_t step, const T* bias, bool fresh, T* tile) {
    Vector<T> sums[P][V];
#pragma GCC unroll 20
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sums[p][v] = load((fresh ? bias : tile + p * step) + v * lanes<T>);
    }
    for (int64_t i = 0; i < inputs; ++i) {
        for (int ky = 0; ky < 3; ++ky) {
            const T* cells = from[ky] + i * plane;
            const auto tap = [&] {
                Vector<T> w[V];
#pragma GCC unroll 4
                for (int v = 0; v < V; ++v) w[v] = load(weights + v * lanes<T>);
                const T* cell = cells;
#pragma GCC unroll 20
                for (int p = 0; p < P; ++p, cell += col) {
                    const Vector<T> x = splat(*cell);
#pragma GCC unroll 4
                    for (int v = 0; v < V; ++v) sums[p][v] = fma(w[v], x, sums[p][v]);
                }
                cells += col, weights += step;
            };
            // Unrolled, the compiler keeps the cells that the taps share in registers.
            if constexpr (P * (V + 1) + 2 + 3 * V <= vector_registers) {
                tap(), tap(), tap();
            } else {
#pragma GCC unroll 1
                for (int kx = 0; kx < 3; ++kx) tap();
            }
        }
    }
#pragma GCC unroll 20
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) store(tile + p * step + v * lanes<T>, sums[p][v]);
    }
}

// Vectors [v, end) of a row in blocks of V, then of fewer. A block of one vector is avoided where possible:
// it has few sums, and each waits for the one before it.
template <class T, int O, int V, bool PerLane, class WeightsAt>
void blocks_along_x(const T* const (&from)[3], int64_t plane, int64_t inputs, const WeightsAt& weights_at,
                    int64_t step, const T* bias, bool fresh, T* out, int64_t out_stride, int64_t v,
                    int64_t end) {
    for (; v + V <= end && (V <= 2 || end - v != V + 1); v += V) {
        const T *weights[V], *cells[3];
        for (int i = 0; i < V; ++i) weights[i] = weights_at(v + i);
        for (int i = 0; i < 3; ++i) cells[i] = from[i] + v * lanes<T>;
        accumulate_along_x<T, O, V, PerLane>(cells, plane, inputs, weights, step, bias, fresh,
                                             out + v * lanes<T>, out_stride);
    }
    if constexpr (V > 1) {
        blocks_along_x<T, O, V - 1, PerLane>(from, plane, inputs, weights_at, step, bias, fresh, out,
                                             out_stride, v, end);
    }
}

// Pixels [x, end) in blocks of P, then of fewer.
template <class T, int P, int V>
void blocks_over_outputs(const T* const (&from)[3], int64_t col, int64_t plane, int64_t inputs,
                         const T* weights, int64_t step, const T* bias, bool fresh, T* tile, int64_t x,
                         int64_t end) {
    for (; x + P <= end; x += P) {
        const T* const cells[3] = {from[0] + x * col, from[1] + x * col, from[2] + x * col};
        accumulate_over_outputs<T, P, V>(cells, col, plane, inputs, weights, step, bias, fresh,
                                         tile + x * step);
    }
    if constexpr (P > 1) {
        blocks_over_outputs<T, P / 2, V>(from, col, plane, inputs, weights, step, bias, fresh, tile, x, end);
    }
}

template <class T>
void Conv3x3<T>::part_of_pixels(const T* const (&from)[3], int64_t col, int64_t plane, int64_t y,
                                int64_t begin, int64_t end, T* tile) const {
    const int vertical = borders_at(y, height);
    const auto columns = [&](int64_t first_x, int64_t end_x) {
        const T* w = weights(vertical, borders_at(first_x, width)) + begin * 9 * rows;
        int64_t o = 0;
        const auto run = [&](auto pixels, auto vectors) {
            constexpr int P = pixels, V = vectors;
            for (; o + V * lanes<T> <= rows; o += V * lanes<T>) {
                blocks_over_outputs<T, P, V>(from, col, plane, end - begin, w + o, rows, bias_.get() + o,
                                             begin == 0, tile + o, first_x, end_x);
            }
        };
        // As many sums as there are registers for; for one vector, as many as are added to at once.
        run(std::integral_constant<int, vector_registers == 32 ? 10 : 5>(), std::integral_constant<int, 2>());
        run(std::integral_constant<int, 10>(), std::integral_constant<int, 1>());
    };
    if (bordered_ && width > 1) {
        columns(0, 1);
        columns(1, width - 1);
        columns(width - 1, width);
    } else {
        columns(0, width);
    }
}

template <class T>
void Conv3x3<T>::part_of_row(const T* const (&from)[3], int64_t plane, int64_t y, int64_t begin, int64_t end,
                             T* out, T* tile) const {
    if (along_x) return part_along_x(from, plane, y, begin, end, out);
    part_of_pixels(from, 1, plane, y, begin, end, tile);
    if (end < inputs) return;
    for (int64_t x = 0; x < width; x += lanes<T>) {
        for (int64_t o = 0; o < rows; o += lanes<T>) {
            Vector<T> square[lanes<T>];
            for (int i = 0; i < lanes<T>; ++i) square[i] = load(tile + (x + i) * rows + o);
            transpose<T>(square);
            for (int i = 0; i < lanes<T>; ++i) store(out + (o + i) * row_length() + x, square[i]);
        }
    }
}

template <class T>
void Conv3x3<T>::part_along_x(const T* const (&from)[3], int64_t plane, int64_t y, int64_t begin, int64_t end,
                              T* out) const {
    const int64_t vectors = row_length() / lanes<T>;
    const int vertical = borders_at(y, height);
    const auto weights_at = [&](int64_t o, int64_t scale) {
        return [this, vertical, vectors, at = (begin * 9 * rows + o) * scale](int64_t v) {
            return weights(vertical, borders_at(v, vectors)) + at;
        };
    };
    int64_t o = 0;
    const auto run = [&](auto outputs_at_once, auto vectors_at_once) {
        constexpr int O = outputs_at_once, V = vectors_at_once;
        for (; o + O <= rows; o += O) {
            const T* bias = bias_.get() + o;
            T* to = out + o * row_length();
            if (bordered_) {
                blocks_along_x<T, O, V, true>(from, plane, end - begin, weights_at(o, lanes<T>), rows, bias,
                                              begin == 0, to, row_length(), 0, vectors);
            } else {
                blocks_along_x<T, O, V, false>(from, plane, end - begin, weights_at(o, 1), rows, bias,
                                               begin == 0, to, row_length(), 0, vectors);
            }
        }
    };
    // 24 to 16 sums where there are 32 registers, 12 to 8 where there are 16.
    constexpr bool many = vector_registers == 32;
    if constexpr (many) run(std::integral_constant<int, 8>(), std::integral_constant<int, 3>());
    run(std::integral_constant<int, 4>(), std::integral_constant<int, many ? 5 : 3>());
    run(std::integral_constant<int, 2>(), std::integral_constant<int, many ? 8 : 4>());
}

// Compiled once, in conv3x3.cpp: it takes longest of all.
extern template class Conv3x3<float>;
extern template class Conv3x3<double>;

}  // namespace sharpmask::SHARPMASK_ISA
