// 3x3 convolutions, row by row, on planes that lie in a core's cache.
//
// A convolution after a x2 upsample is a convolution before it: conv(up2(x), w) = pixel_shuffle(conv(x, W),
// 2) with composite weights W of four phases (a, b), W[o, (a, b), i] = sum_kl w[o, i, k, l] U[a, k] (x) U[b,
// l], where U[a, k] says which cells of x the upsampled row 2y + a + k - 1 is made of. x goes on beyond its
// border by clamping. That is exact for "replicate"; for "zeros" the taps beyond the upsampled border are
// left out of W, so that the first and the last row and column have weights of their own.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>

#include "vector.h"

namespace sharpmask::SHARPMASK_ISA {

// Zeroed memory that starts on a cache line.
template <class T>
class Buffer {
  public:
    Buffer() = default;
    explicit Buffer(int64_t count)
        : data_(static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t{64}))) {
        std::memset(static_cast<void*>(data_), 0, count * sizeof(T));
    }
    Buffer(Buffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
    Buffer& operator=(Buffer&& other) noexcept {
        std::swap(data_, other.data_);
        return *this;
    }
    ~Buffer() { ::operator delete(data_, std::align_val_t{64}); }
    T* get() const { return data_; }

  private:
    T* data_ = nullptr;
};

// Channels of height x width cells with a border of one cell around: one plane after another, whose rows have
// room for whole vectors, or all channels of a pixel side by side.
template <class T>
struct Planes {
    int64_t channels = 0, height = 0, width = 0;
    bool by_pixel = false;
    int64_t col = 0, stride = 0, plane = 0;  // from a cell to the next one's, row's, channel's
    Buffer<T> memory;

    Planes() = default;
    Planes(int64_t channels, int64_t height, int64_t width, bool by_pixel = false)
        : channels(channels),
          height(height),
          width(width),
          by_pixel(by_pixel),
          col(by_pixel ? channels : 1),
          stride(by_pixel ? (width + 2) * channels : round_up<T>(width) + lanes<T>),
          plane(by_pixel ? 1 : (height + 2) * stride),
          memory(by_pixel ? (height + 2) * stride : channels * plane) {}

    T* row(int64_t channel, int64_t y) const {
        return memory.get() + channel * plane + (y + 1) * stride + col;
    }

    void fill_border(bool clamped) const {
        for (int64_t y = 0; y < height; ++y) {
            for (int64_t c = 0; c < channels; ++c) {
                T *begin = row(c, y), *end = begin + width * col;
                begin[-col] = clamped ? begin[0] : T{0};
                *end = clamped ? end[-col] : T{0};
            }
        }
        if (!clamped) return;  // the rows above and below were never written
        for (int64_t c = 0; c < (by_pixel ? 1 : channels); ++c) {
            std::memcpy(row(c, -1) - col, row(c, 0) - col, (width + 2) * col * sizeof(T));
            std::memcpy(row(c, height) - col, row(c, height - 1) - col, (width + 2) * col * sizeof(T));
        }
    }
};

// Where a cell lies on its axis; a single cell is both the first and the last.
constexpr int inner = 0, first = 1, last = 2;

constexpr int place(int64_t i, int64_t length) {
    return (i == 0 ? first : inner) | (i == length - 1 ? last : inner);
}

struct Taps {  // U[phase][tap][cell of the low resolution]
    double u[2][3][3];
};

inline Taps upsampling_taps(bool nearest, int where) {
    constexpr double n[2][3][3] = {{{1, 0, 0}, {0, 1, 0}, {0, 1, 0}}, {{0, 1, 0}, {0, 1, 0}, {0, 0, 1}}};
    constexpr double b[2][3][3] = {{{.75, .25, 0}, {.25, .75, 0}, {0, .75, .25}},
                                   {{.25, .75, 0}, {0, .75, .25}, {0, .25, .75}}};
    Taps taps;
    std::memcpy(taps.u, nearest ? n : b, sizeof taps.u);
    if (where & first) std::memset(taps.u[0][0], 0, sizeof taps.u[0][0]);
    if (where & last) std::memset(taps.u[1][2], 0, sizeof taps.u[1][2]);
    return taps;
}

// What three weights, `step` apart, make of a cell on one axis. A weight that is not finite spreads no
// further than it must.
template <class T>
double seen(const T* weights, int step, const double (&taps)[3][3], int cell) {
    double sum = 0;
    for (int k = 0; k < 3; ++k) {
        if (taps[k][cell] != 0) sum += weights[k * step] * taps[k][cell];
    }
    return sum;
}

// One convolution and how it is vectorised: along x, with each weight broadcast, or over the outputs, with
// each input broadcast.
template <class T>
class Conv3x3 {
  public:
    Conv3x3(const T* weight, const T* bias, int64_t inputs, int64_t outputs, int64_t height, int64_t width,
            bool upsampled, bool nearest, bool zeros);

    int64_t inputs, outputs;  // outputs of one phase
    int64_t height, width;    // of the input
    bool upsampled;
    int64_t rows;  // that `row` writes: phases times outputs, and some more to fill vectors

    bool along_x;

    int64_t row_length() const { return round_up<T>(width); }
    int64_t tile_size() const { return along_x ? 1 : row_length() * rows; }

    // Row `y` of the output: all of out[phase * outputs + o], each row_length() long. `from` points at the
    // left border cells of rows y - 1, y, y + 1 of the first channel, the next one's being `plane` further
    // on.
    void row(const T* const (&from)[3], int64_t plane, int64_t y, T* out, T* tile) const {
        part_of_row(from, plane, y, 0, inputs, out, tile);
    }

    // The share of the inputs [begin, end), which `from` begins with; the shares of those before are in
    // `out`. (Where outputs are vectorised over, they are in `tile`, which must be left alone until the last
    // share.)
    void part_of_row(const T* const (&from)[3], int64_t plane, int64_t y, int64_t begin, int64_t end, T* out,
                     T* tile) const;

    // Where outputs are vectorised over: the same with the outputs of a pixel side by side, tile[x * rows +
    // phase * outputs + o], from cells that are `col` apart.
    void part_of_pixels(const T* const (&from)[3], int64_t col, int64_t plane, int64_t y, int64_t begin,
                        int64_t end, T* tile) const;

  private:
    bool bordered_;
    int64_t set_;  // the size of one set of weights
    Buffer<T> weights_, bias_;

    // The weights for rows at the place `vertical`, columns (or vectors of columns) at `horizontal`.
    T* weights(int vertical, int horizontal) const {
        return weights_.get() + (bordered_ ? vertical * 4 + horizontal : 0) * set_;
    }
    void compose(const T* weight, bool nearest, int vertical, int horizontal, T* to, int64_t step) const;
    void build(const T* weight, bool nearest);
    void part_along_x(const T* const (&from)[3], int64_t plane, int64_t y, int64_t begin, int64_t end,
                      T* out) const;
};

// `to`[(i, ky, kx, phase, o) * step] of the convolution, upsampled or not.
template <class T>
void Conv3x3<T>::compose(const T* weight, bool nearest, int vertical, int horizontal, T* to,
                         int64_t step) const {
    if (!upsampled) {
        for (int64_t i = 0; i < inputs; ++i) {
            for (int tap = 0; tap < 9; ++tap) {
                for (int64_t o = 0; o < outputs; ++o) {
                    to[((i * 9 + tap) * rows + o) * step] = weight[(o * inputs + i) * 9 + tap];
                }
            }
        }
        return;
    }
    const Taps above = upsampling_taps(nearest, vertical), beside = upsampling_taps(nearest, horizontal);
    for (int64_t i = 0; i < inputs; ++i) {
        for (int64_t o = 0; o < outputs; ++o) {
            const T* w = weight + (o * inputs + i) * 9;
            double across[3][2][3];  // of every row of taps, phase and cell
            for (int row = 0; row < 3; ++row) {
                for (int b = 0; b < 2; ++b) {
                    for (int x = 0; x < 3; ++x) across[row][b][x] = seen(w + row * 3, 1, beside.u[b], x);
                }
            }
            for (int phase = 0; phase < 4; ++phase) {
                for (int tap = 0; tap < 9; ++tap) {
                    const double sum = seen(&across[0][phase % 2][tap % 3], 6, above.u[phase / 2], tap / 3);
                    to[((i * 9 + tap) * rows + phase * outputs + o) * step] = static_cast<T>(sum);
                }
            }
        }
    }
}

// Every set of weights that some cell needs.
template <class T>
void Conv3x3<T>::build(const T* weight, bool nearest) {
    const int step = bordered_ && along_x ? lanes<T> : 1;
    for (int vertical = 0; vertical < (bordered_ ? 4 : 1); ++vertical) {
        // A row is at both ends if it is the only one; inner ones need a third.
        const bool occurs = vertical == (first | last) ? height == 1 : height >= (vertical == inner ? 3 : 2);
        if (bordered_ && !occurs) continue;
        for (int horizontal = 0; horizontal < (bordered_ ? 4 : 1); ++horizontal) {
            T* to = weights(vertical, horizontal);
            if (step == 1) {
                compose(weight, nearest, vertical, horizontal, to, 1);
                continue;
            }
            // A vector at both ends, or at one, or at none: its columns' weights lane by lane.
            for (int lane = 0; lane < lanes<T>; ++lane) {
                const int64_t end = (width - 1) % lanes<T>;
                const int column = (horizontal & first && lane == 0 ? first : inner) |
                                   (horizontal & last && lane == end ? last : inner);
                compose(weight, nearest, vertical, column, to + lane, step);
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
    weights_ = Buffer<T>(set_ * (bordered_ ? 16 : 1));
    bias_ = Buffer<T>(rows);
    for (int64_t i = 0; i < used && bias != nullptr; ++i) bias_.get()[i] = bias[i % outputs];
    build(weight, nearest);
}

// Along x: O outputs of V vectors of pixels. Weights are one a lane, or one for all lanes.
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

// Vectors [v, end) of a row in blocks of V, then of fewer; never a single one if that can be, as its few sums
// wait for each other.
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
    const int vertical = place(y, height);
    const auto columns = [&](int64_t first_x, int64_t end_x) {
        const T* w = weights(vertical, place(first_x, width)) + begin * 9 * rows;
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
    const int vertical = place(y, height);
    const auto weights_at = [&](int64_t o, int64_t scale) {
        return [this, vertical, vectors, at = (begin * 9 * rows + o) * scale](int64_t v) {
            return weights(vertical, place(v, vectors)) + at;
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

}  // namespace sharpmask::SHARPMASK_ISA
