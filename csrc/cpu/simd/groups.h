// Rows of pixels whose channels lie in groups, and products of them with matrices of weights.
#pragma once

#include <algorithm>
#include <optional>

#include "maps.h"
#include "parameters.h"

namespace sharpmask::SHARPMASK_ISA {

// Channels of a group: two vectors.
template <class T>
constexpr int64_t group = 2 * lanes<T>;

template <class T>
int64_t groups_of(int64_t channels) {
    return (channels + group<T> - 1) / group<T>;
}

enum class Clip { none, relu, relu6 };

template <class V>
V clipped(V v, Clip clip) {
    if (clip == Clip::none) return v;
    v = relu<V>(v);
    if (clip == Clip::relu6) v = v > V{} + 6 ? V{} + 6 : v;
    return v;
}

// A row of pixels: [group][pixel][channel of the group].
template <class T>
struct Row {
    T* data;
    int64_t cells;  // from one group to the next

    T* of(int64_t g) const { return data + g * cells * group<T>; }
};

// Weights (outputs, inputs, height, width) by groups of outputs: [group][tap][input][output of the group],
// with zeros where there is no output.
template <class T>
struct Matrix {
    int64_t outputs, inputs, taps;
    Buffer<T> weights, biases;

    Matrix(const TensorView& weight, const std::optional<TensorView>& bias)
        : outputs(weight.sizes[0]),
          inputs(weight.sizes[1]),
          taps(weight.sizes[2] * weight.sizes[3]),
          weights(groups_of<T>(outputs) * group<T> * inputs * taps),
          biases(groups_of<T>(outputs) * group<T>) {
        const Dense<T> dense(weight), offsets = dense_or_null<T>(bias);
        for (int64_t o = 0; o < outputs; ++o) {
            T* to = weights.get() + o / group<T> * group<T> * inputs * taps + o % group<T>;
            const T* from = dense.get() + o * inputs * taps;
            for (int64_t i = 0; i < inputs; ++i) {
                for (int64_t tap = 0; tap < taps; ++tap)
                    to[(tap * inputs + i) * group<T>] = from[i * taps + tap];
            }
            if (offsets.get() != nullptr) biases.get()[o] = offsets.get()[o];
        }
    }

    const T* of(int64_t g) const { return weights.get() + g * group<T> * inputs * taps; }
    const T* bias(int64_t g) const { return biases.get() + g * group<T>; }
};

// The products of P pixels: to[p][output] = clip(bias + sum over taps and inputs), for V vectors of N
// outputs. rows[tap] is the first pixel's cell of that tap.
template <class T, int P, int V, int N>
void multiply_pixels(const Row<T>* rows, const Matrix<T>& m, int64_t g, Clip clip, T* to) {
    using Outputs = Vector<T, N>;
    Outputs sums[P][V];
#pragma GCC unroll 24
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) sums[p][v] = load<T, N>(m.bias(g) + v * N);
    }
    const T* w = m.of(g);
    for (int64_t tap = 0; tap < m.taps; ++tap) {
        for (int64_t i = 0; i < m.inputs; i += group<T>) {
            const T* cell = rows[tap].of(i / group<T>);
            for (const T* end = cell + std::min(m.inputs - i, group<T>); cell < end; ++cell, w += group<T>) {
                Outputs row[V];
#pragma GCC unroll 2
                for (int v = 0; v < V; ++v) row[v] = load<T, N>(w + v * N);
#pragma GCC unroll 24
                for (int p = 0; p < P; ++p) {
                    const Outputs value = cell[p * group<T>] - Outputs{};
#pragma GCC unroll 2
                    for (int v = 0; v < V; ++v) sums[p][v] = fma(value, row[v], sums[p][v]);
                }
            }
        }
    }
#pragma GCC unroll 24
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) store(to + p * group<T> + v * N, clipped(sums[p][v], clip));
    }
}

// The same for any number of pixels. `rows` are moved on.
template <class T, int P, int V, int N>
void multiply_some(int64_t pixels, Row<T>* rows, const Matrix<T>& m, int64_t g, Clip clip, T* to) {
    for (; pixels >= P; pixels -= P, to += P * group<T>) {
        multiply_pixels<T, P, V, N>(rows, m, g, clip, to);
        for (int64_t tap = 0; tap < m.taps; ++tap) rows[tap].data += P * group<T>;
    }
    if constexpr (P > 1) {
        if (pixels > 0) multiply_some<T, P / 2, V, N>(pixels, rows, m, g, clip, to);
    }
}

// The same for all outputs. Where a group has few of them, more pixels are computed at once, in as many
// registers.
template <class T>
void multiply_row(int64_t pixels, const Row<T>* taps, const Matrix<T>& m, Clip clip, const Row<T>& to) {
    constexpr int most_taps = 9, pairs = vector_registers == 32 ? 12 : 6;
    for (int64_t g = 0; g < groups_of<T>(m.outputs); ++g) {
        Row<T> rows[most_taps];
        std::copy_n(taps, m.taps, rows);
        const int64_t outputs = m.outputs - g * group<T>;
        if (outputs > lanes<T>) {
            multiply_some<T, pairs, 2, lanes<T>>(pixels, rows, m, g, clip, to.of(g));
        } else if (vector_bytes < 64 || outputs > lanes<T> / 2) {
            multiply_some<T, 2 * pairs, 1, lanes<T>>(pixels, rows, m, g, clip, to.of(g));
        } else {
            multiply_some<T, 2 * pairs, 1, lanes<T> / 2>(pixels, rows, m, g, clip, to.of(g));
        }
    }
}

extern template void multiply_row(int64_t, const Row<float>*, const Matrix<float>&, Clip, const Row<float>&);
extern template void multiply_row(int64_t, const Row<double>*, const Matrix<double>&, Clip,
                                  const Row<double>&);

// Pixels as read_pixels gives them, into groups.
template <class T>
void to_groups(const T* pixels, int64_t channels, int64_t count, const Row<T>& to) {
    for (int64_t begin = 0; begin < channels; begin += group<T>) {
        const int64_t some = std::min(group<T>, channels - begin);
        for (int64_t x = 0; x < count; ++x)
            std::copy_n(pixels + x * channels + begin, some, to.of(begin / group<T>) + x * group<T>);
    }
}

// Writes pixels of a row of a map, from column `left` on.
template <class T>
void write_groups(const TypedMap& map, int64_t image, int64_t y, int64_t left, int64_t count,
                  const Row<T>& from) {
    const Strides& s = map.strides;
    const int64_t offset = image * s.batch + y * s.row + left * s.col;
    with_pointer<T>(map.dtype, const_cast<void*>(map.data), [&](auto* to) {
        using To = std::remove_pointer_t<decltype(to)>;
        for (int64_t begin = 0; begin < map.channels; begin += group<T>) {
            const int64_t some = std::min(group<T>, map.channels - begin);
            for (int64_t x = 0; x < count; ++x) {
                const T* cell = from.of(begin / group<T>) + x * group<T>;
                To* out = to + offset + x * s.col + begin * s.channel;
                for (int64_t c = 0; c < some; ++c) out[c * s.channel] = narrow<To>(cell[c]);
            }
        }
    });
}

}  // namespace sharpmask::SHARPMASK_ISA
