// Expansion, depthwise convolution and projection, row by row: the hidden map, which is several times as
// large as the block's input and output, never leaves the cache.
//
// Channels of a pixel lie side by side, in groups of two vectors. A task has a band of output rows and a
// range of their columns. It holds the last k expanded rows.

#include <algorithm>

#include "../parallel.h"
#include "kernels.h"
#include "maps.h"
#include "parameters.h"

namespace sharpmask::SHARPMASK_ISA {
namespace {

constexpr int group_vectors = 2;
// Pixels at once in a product: with two vectors each, their sums leave registers for the operands.
constexpr int product_pixels = vector_registers == 32 ? 12 : 6;
constexpr int depthwise_pixels = 6;
constexpr int64_t ring_bytes = 256 << 10;  // of the expanded rows of a task: they stay in the second cache

template <class T>
constexpr int64_t group = group_vectors * lanes<T>;

template <class T>
int64_t groups_of(int64_t channels) {
    return (channels + group<T> - 1) / group<T>;
}

template <class T>
Vector<T> relu6(Vector<T> v) {
    v = relu<Vector<T>>(v);
    return v > splat(T{6}) ? splat(T{6}) : v;
}

// Weights (outputs, inputs) by groups of outputs: [group][input][output of the group], zeros where there is
// none.
template <class T>
struct Matrix {
    int64_t outputs, inputs;
    Buffer<T> weights, biases;

    Matrix(const TensorView& weight, const std::optional<TensorView>& bias)
        : outputs(weight.sizes[0]),
          inputs(weight.sizes[1] * weight.sizes[2] * weight.sizes[3]),
          weights(groups_of<T>(outputs) * group<T> * inputs),
          biases(groups_of<T>(outputs) * group<T>) {
        const Dense<T> dense(weight), offsets = dense_or_null<T>(bias);
        for (int64_t o = 0; o < outputs; ++o) {
            T* to = weights.get() + o / group<T> * group<T> * inputs + o % group<T>;
            for (int64_t i = 0; i < inputs; ++i) to[i * group<T>] = dense.get()[o * inputs + i];
            if (offsets.get() != nullptr) biases.get()[o] = offsets.get()[o];
        }
    }

    const T* of(int64_t g) const { return weights.get() + g * group<T> * inputs; }
    const T* bias(int64_t g) const { return biases.get() + g * group<T>; }
};

// A row of pixels whose channels lie in groups: [group][pixel][channel of the group].
template <class T>
struct Row {
    T* data;
    int64_t cells;  // from one group to the next

    T* of(int64_t g) const { return data + g * cells * group<T>; }
};

// P pixels of `to`, a group of outputs: activation(bias + sum_i from[i] w[i][output]).
template <class T, int P, bool Relu6>
void product(Row<T> from, int64_t inputs, const T* w, const T* bias, T* to) {
    Vector<T> sums[P][group_vectors];
#pragma GCC unroll 12
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 2
        for (int v = 0; v < group_vectors; ++v) sums[p][v] = load(bias + v * lanes<T>);
    }
    for (; inputs > 0; inputs -= group<T>, from.data += from.cells * group<T>) {
        const T* cell = from.data;
        for (const T* end = cell + std::min(inputs, group<T>); cell < end; ++cell, w += group<T>) {
            Vector<T> row[group_vectors];
#pragma GCC unroll 2
            for (int v = 0; v < group_vectors; ++v) row[v] = load(w + v * lanes<T>);
#pragma GCC unroll 12
            for (int p = 0; p < P; ++p) {
                const Vector<T> value = splat(cell[p * group<T>]);
#pragma GCC unroll 2
                for (int v = 0; v < group_vectors; ++v) sums[p][v] = fma(value, row[v], sums[p][v]);
            }
        }
    }
#pragma GCC unroll 12
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 2
        for (int v = 0; v < group_vectors; ++v)
            store(to + p * group<T> + v * lanes<T>, Relu6 ? relu6<T>(sums[p][v]) : sums[p][v]);
    }
}

template <class T, bool Relu6, int P = product_pixels>
void products(int64_t pixels, Row<T> from, int64_t inputs, const T* w, const T* bias, T* to) {
    for (; pixels >= P; pixels -= P, from.data += P * group<T>, to += P * group<T>)
        product<T, P, Relu6>(from, inputs, w, bias, to);
    if constexpr (P > 1) {
        if (pixels > 0) products<T, Relu6, P / 2>(pixels, from, inputs, w, bias, to);
    }
}

// A vector of channels of P outputs side by side. rows[ky] is the first output's left cell; the weights of a
// tap are `group` apart, as are cells.
template <class T, int K, int S, int P>
void depthwise(const T* const* rows, const T* w, Vector<T> bias, T* to) {
    Vector<T> sums[P];
#pragma GCC unroll 6
    for (int p = 0; p < P; ++p) sums[p] = bias;
    for (int ky = 0; ky < K; ++ky, w += K * group<T>) {
        Vector<T> taps[K];
#pragma GCC unroll 7
        for (int kx = 0; kx < K; ++kx) taps[kx] = load(w + kx * group<T>);
        const T* row = rows[ky];
#pragma GCC unroll 17
        for (int x = 0; x < (P - 1) * S + K; ++x) {
            const Vector<T> cell = load(row + x * group<T>);
#pragma GCC unroll 6
            for (int p = 0; p < P; ++p) {
                if (x - p * S >= 0 && x - p * S < K) sums[p] = fma(cell, taps[x - p * S], sums[p]);
            }
        }
    }
#pragma GCC unroll 6
    for (int p = 0; p < P; ++p) store(to + p * group<T>, relu6<T>(sums[p]));
}

template <class T, int K, int S, int P = depthwise_pixels>
void depthwise_row(int64_t pixels, const T* const* rows, const T* w, Vector<T> bias, T* to) {
    const T* at[K];
    int64_t p = 0;
    for (; p + P <= pixels; p += P) {
        for (int ky = 0; ky < K; ++ky) at[ky] = rows[ky] + p * S * group<T>;
        depthwise<T, K, S, P>(at, w, bias, to + p * group<T>);
    }
    if constexpr (P > 1) {
        if (p >= pixels) return;
        for (int ky = 0; ky < K; ++ky) at[ky] = rows[ky] + p * S * group<T>;
        depthwise_row<T, K, S, 1>(pixels - p, at, w, bias, to + p * group<T>);
    }
}

template <class T>
struct Weights {
    std::optional<Matrix<T>> expand;
    Matrix<T> depthwise, project;

    explicit Weights(const InvertedResidual& a)
        : depthwise(a.depthwise_weight, a.depthwise_bias), project(a.project_weight, a.project_bias) {
        if (a.expand_weight) expand.emplace(*a.expand_weight, a.expand_bias);
    }
};

struct Tile {
    int64_t image, top, bottom, left, right;  // of the output
};

template <class T, int K, int S>
class Block {
  public:
    Block(const InvertedResidual& a, const Weights<T>& weights, int64_t widest)
        : a_(a),
          w_(weights),
          groups_(groups_of<T>(weights.depthwise.outputs)),
          cells_((widest - 1) * S + K),
          ring_(K * groups_ * cells_ * group<T>),
          pixels_(cells_ * a.x.channels),
          scratch_(round_up<T>(cells_) * a.x.channels),
          input_(groups_of<T>(a.x.channels) * cells_ * group<T>),
          hidden_(groups_ * widest * group<T>),
          out_(groups_of<T>(weights.project.outputs) * widest * group<T>),
          widest_(widest) {}

    void run(const Tile& tile) {
        int64_t next = tile.top * S - before;  // the input row to expand next
        for (int64_t y = tile.top; y < tile.bottom; ++y) {
            const int64_t first = y * S - before;
            for (next = std::max(next, first); next < first + K; ++next) expand_row(tile, next);
            convolve_row(tile, first);
            project_row(tile, y);
        }
    }

  private:
    static constexpr int64_t before = (K - S) / 2;  // the border above and to the left

    const InvertedResidual& a_;
    const Weights<T>& w_;
    const int64_t groups_, cells_;
    Buffer<T> ring_, pixels_, scratch_, input_, hidden_, out_;
    const int64_t widest_;

    Row<T> expanded(int64_t y) const {
        return {ring_.get() + (y + K) % K * groups_ * cells_ * group<T>, cells_};
    }
    Row<T> hidden() const { return {hidden_.get(), widest_}; }
    Row<T> out() const { return {out_.get(), widest_}; }

    // Columns [left, left + count) of a row of the input.
    void read_groups(const Tile& tile, int64_t y, int64_t left, int64_t count, Row<T> to) {
        const int64_t channels = a_.x.channels;
        read_pixels(a_.x, tile.image, y, left, channels, count, pixels_.get(), scratch_.get());
        for (int64_t g = 0; g < groups_of<T>(channels); ++g) {
            const int64_t begin = g * group<T>, some = std::min(group<T>, channels - begin);
            const T* from = pixels_.get() + begin;
            for (int64_t x = 0; x < count; ++x)
                std::copy_n(from + x * channels, some, to.of(g) + x * group<T>);
        }
    }

    // Beyond the image are zeros, also after the expansion.
    void expand_row(const Tile& tile, int64_t y) {
        const int64_t begin = tile.left * S - before, end = (tile.right - 1) * S - before + K;
        const int64_t left = std::max<int64_t>(begin, 0), right = std::min(end, a_.x.width);
        Row<T> row = expanded(y);
        if (y < 0 || y >= a_.x.height) {
            std::fill_n(row.data, groups_ * cells_ * group<T>, T{0});
            return;
        }
        for (int64_t g = 0; g < groups_; ++g) {
            std::fill_n(row.of(g), (left - begin) * group<T>, T{0});
            std::fill(row.of(g) + (right - begin) * group<T>, row.of(g) + (end - begin) * group<T>, T{0});
        }
        row.data += (left - begin) * group<T>;
        if (!w_.expand) return read_groups(tile, y, left, right - left, row);
        const Row<T> input{input_.get(), cells_};
        read_groups(tile, y, left, right - left, input);
        for (int64_t g = 0; g < groups_; ++g)
            products<T, true>(right - left, input, w_.expand->inputs, w_.expand->of(g), w_.expand->bias(g),
                              row.of(g));
    }

    void convolve_row(const Tile& tile, int64_t first) {
        for (int64_t g = 0; g < groups_; ++g) {
            for (int64_t v = 0; v < group<T>; v += lanes<T>) {
                const T* rows[K];
                for (int ky = 0; ky < K; ++ky) rows[ky] = expanded(first + ky).of(g) + v;
                depthwise_row<T, K, S>(tile.right - tile.left, rows, w_.depthwise.of(g) + v,
                                       load(w_.depthwise.bias(g) + v), hidden().of(g) + v);
            }
        }
    }

    void project_row(const Tile& tile, int64_t y) {
        const int64_t width = tile.right - tile.left, groups = groups_of<T>(w_.project.outputs);
        for (int64_t g = 0; g < groups; ++g)
            products<T, false>(width, hidden(), w_.project.inputs, w_.project.of(g), w_.project.bias(g),
                               out().of(g));
        if (a_.residual) {
            const Row<T> input{input_.get(), cells_};
            read_groups(tile, y, tile.left, width, input);
            for (int64_t g = 0; g < groups; ++g) {
                for (int64_t i = 0; i < width * group<T>; i += lanes<T>)
                    store(out().of(g) + i, load(out().of(g) + i) + load(input.of(g) + i));
            }
        }
        write(tile, y, width);
    }

    void write(const Tile& tile, int64_t y, int64_t width) {
        const Strides& s = a_.out.strides;
        const int64_t offset = tile.image * s.batch + y * s.row + tile.left * s.col,
                      outputs = w_.project.outputs;
        with_pointer<T>(a_.out.dtype, const_cast<void*>(a_.out.data), [&](auto* to) {
            using To = std::remove_pointer_t<decltype(to)>;
            for (int64_t g = 0; g < groups_of<T>(outputs); ++g) {
                const int64_t begin = g * group<T>, some = std::min(group<T>, outputs - begin);
                for (int64_t x = 0; x < width; ++x) {
                    const T* from = out().of(g) + x * group<T>;
                    To* cell = to + offset + x * s.col + begin * s.channel;
                    for (int64_t o = 0; o < some; ++o) cell[o * s.channel] = narrow<To>(from[o]);
                }
            }
        });
    }
};

template <class T, int K, int S>
void run_blocks(const InvertedResidual& a) {
    const TypedMap& out = a.out;
    if (out.batch * out.height * out.width * out.channels == 0) return;
    const Weights<T> weights(a);
    const int64_t hidden = groups_of<T>(weights.depthwise.outputs) * group<T>;
    const int64_t cells = ring_bytes / static_cast<int64_t>(K * hidden * sizeof(T));
    const int64_t fitting = std::max<int64_t>((cells - K) / S + 1, 8);
    const int64_t parts = (out.width + fitting - 1) / fitting;
    const int64_t across = (out.width + parts - 1) / parts;
    const int64_t columns =
        std::min(out.width, (across + product_pixels - 1) / product_pixels * product_pixels);
    const int64_t tiles_across = (out.width + columns - 1) / columns;
    // Rows at a band's border are expanded twice.
    const int64_t wanted = (2 * a.threads + out.batch * tiles_across - 1) / (out.batch * tiles_across);
    const int64_t rows = std::min(out.height, std::max<int64_t>((out.height + wanted - 1) / wanted, 2 * K));
    const int64_t bands = (out.height + rows - 1) / rows;
    parallel_for(
        out.batch * bands * tiles_across, a.threads, [&] { return Block<T, K, S>(a, weights, columns); },
        [&](Block<T, K, S>& block, int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
                const int64_t left = i % tiles_across * columns, top = i / tiles_across % bands * rows;
                block.run({i / tiles_across / bands, top, std::min(top + rows, out.height), left,
                           std::min(left + columns, out.width)});
            }
        });
}

}  // namespace

void inverted_residual(const InvertedResidual& a) {
    in_precision_of(a.out.dtype, [&](auto zero) {
        using T = decltype(zero);
        const bool three = a.depthwise_weight.sizes[2] == 3;
        if (a.stride == 1) {
            three ? run_blocks<T, 3, 1>(a) : run_blocks<T, 5, 1>(a);
        } else {
            three ? run_blocks<T, 3, 2>(a) : run_blocks<T, 5, 2>(a);
        }
    });
}

}  // namespace sharpmask::SHARPMASK_ISA
