// Expansion, depthwise convolution and projection, row by row: the hidden map, which is several times as
// large as the block's input and output, never leaves the cache.
//
// Channels of a pixel lie side by side, in groups of two vectors. A task has a band of output rows and a
// range of their columns. It holds the last k expanded rows.

#include <algorithm>

#include "../parallel.h"
#include "groups.h"
#include "kernels.h"

namespace sharpmask::SHARPMASK_ISA {
namespace {

constexpr int depthwise_pixels = 6;
constexpr int64_t whole = 12;              // pixels that products take at once
constexpr int64_t ring_bytes = 256 << 10;  // of the expanded rows of a task: they stay in the second cache

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
    for (int p = 0; p < P; ++p) store(to + p * group<T>, clipped(sums[p], Clip::relu6));
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
using DepthwiseRow = void (*)(int64_t pixels, const T* const* rows, const T* w, Vector<T> bias, T* to);

constexpr int64_t largest_kernel = 5;

template <class T>
DepthwiseRow<T> depthwise_row_for(int64_t kernel, int64_t stride) {
    if (kernel == 3) return stride == 1 ? depthwise_row<T, 3, 1> : depthwise_row<T, 3, 2>;
    return stride == 1 ? depthwise_row<T, 5, 1> : depthwise_row<T, 5, 2>;
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

template <class T>
class Block {
  public:
    Block(const InvertedResidual& a, const Weights<T>& weights, int64_t widest)
        : a_(a),
          w_(weights),
          kernel_(a.depthwise_weight.sizes[2]),
          stride_(a.stride),
          before_((kernel_ - stride_) / 2),
          depthwise_row_(depthwise_row_for<T>(kernel_, stride_)),
          groups_(groups_of<T>(weights.depthwise.outputs)),
          cells_((widest - 1) * stride_ + kernel_),
          ring_(kernel_ * groups_ * cells_ * group<T>),
          pixels_(cells_ * a.x.channels),
          scratch_(round_up<T>(cells_) * a.x.channels),
          input_(groups_of<T>(a.x.channels) * cells_ * group<T>),
          hidden_(groups_ * widest * group<T>),
          out_(groups_of<T>(weights.project.outputs) * widest * group<T>),
          widest_(widest) {}

    void run(const Tile& tile) {
        int64_t next = tile.top * stride_ - before_;  // the input row to expand next
        for (int64_t y = tile.top; y < tile.bottom; ++y) {
            const int64_t first = y * stride_ - before_;
            for (next = std::max(next, first); next < first + kernel_; ++next) expand_row(tile, next);
            convolve_row(tile, first);
            project_row(tile, y);
        }
    }

  private:
    const InvertedResidual& a_;
    const Weights<T>& w_;
    const int64_t kernel_, stride_, before_;  // the last: the border above and to the left
    const DepthwiseRow<T> depthwise_row_;
    const int64_t groups_, cells_;
    Buffer<T> ring_, pixels_, scratch_, input_, hidden_, out_;
    const int64_t widest_;

    Row<T> expanded(int64_t y) const {
        return {ring_.get() + (y + kernel_) % kernel_ * groups_ * cells_ * group<T>, cells_};
    }
    Row<T> hidden() const { return {hidden_.get(), widest_}; }
    Row<T> out() const { return {out_.get(), widest_}; }

    // Columns [left, left + count) of a row of the input.
    void read_groups(const Tile& tile, int64_t y, int64_t left, int64_t count, Row<T> to) {
        const int64_t channels = a_.x.channels;
        read_pixels(a_.x, tile.image, y, left, channels, count, pixels_.get(), scratch_.get());
        to_groups(pixels_.get(), channels, count, to);
    }

    // Beyond the image are zeros, also after the expansion.
    void expand_row(const Tile& tile, int64_t y) {
        const int64_t begin = tile.left * stride_ - before_,
                      end = (tile.right - 1) * stride_ - before_ + kernel_;
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
        multiply_row(right - left, &input, *w_.expand, Clip::relu6, row);
    }

    void convolve_row(const Tile& tile, int64_t first) {
        for (int64_t g = 0; g < groups_; ++g) {
            for (int64_t v = 0; v < group<T>; v += lanes<T>) {
                const T* rows[largest_kernel];
                for (int ky = 0; ky < kernel_; ++ky) rows[ky] = expanded(first + ky).of(g) + v;
                depthwise_row_(tile.right - tile.left, rows, w_.depthwise.of(g) + v,
                               load(w_.depthwise.bias(g) + v), hidden().of(g) + v);
            }
        }
    }

    void project_row(const Tile& tile, int64_t y) {
        const int64_t width = tile.right - tile.left;
        const Row<T> hidden_row = hidden();
        multiply_row(width, &hidden_row, w_.project, Clip::none, out());
        if (a_.residual) {
            const Row<T> input{input_.get(), cells_};
            read_groups(tile, y, tile.left, width, input);
            for (int64_t g = 0; g < groups_of<T>(w_.project.outputs); ++g) {
                for (int64_t i = 0; i < width * group<T>; i += lanes<T>)
                    store(out().of(g) + i, load(out().of(g) + i) + load(input.of(g) + i));
            }
        }
        write_groups(a_.out, tile.image, y, tile.left, width, out());
    }
};

template <class T>
void run_blocks(const InvertedResidual& a) {
    const TypedMap& out = a.out;
    const int64_t kernel = a.depthwise_weight.sizes[2], stride = a.stride;
    if (out.batch * out.height * out.width * out.channels == 0) return;
    const Weights<T> weights(a);
    const int64_t hidden = groups_of<T>(weights.depthwise.outputs) * group<T>;
    const int64_t cells = ring_bytes / static_cast<int64_t>(kernel * hidden * sizeof(T));
    const int64_t fitting = std::max<int64_t>((cells - kernel) / stride + 1, 8);
    const int64_t parts = (out.width + fitting - 1) / fitting;
    const int64_t across = (out.width + parts - 1) / parts;
    const int64_t columns = std::min(out.width, (across + whole - 1) / whole * whole);
    const int64_t tiles_across = (out.width + columns - 1) / columns;
    // Rows at a band's border are expanded twice.
    const int64_t wanted = (2 * a.threads + out.batch * tiles_across - 1) / (out.batch * tiles_across);
    const int64_t rows =
        std::min(out.height, std::max<int64_t>((out.height + wanted - 1) / wanted, 2 * kernel));
    const int64_t bands = (out.height + rows - 1) / rows;
    parallel_for(
        out.batch * bands * tiles_across, a.threads, [&] { return Block<T>(a, weights, columns); },
        [&](Block<T>& block, int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
                const int64_t left = i % tiles_across * columns, top = i / tiles_across % bands * rows;
                block.run({i / tiles_across / bands, top, std::min(top + rows, out.height), left,
                           std::min(left + columns, out.width)});
            }
        });
}

}  // namespace

void inverted_residual(const InvertedResidual& a) {
    in_precision_of(a.out.dtype, [&](auto zero) { run_blocks<decltype(zero)>(a); });
}

}  // namespace sharpmask::SHARPMASK_ISA
