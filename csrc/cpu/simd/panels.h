// Products of tiles and weights, for a panel of outputs at once.
#pragma once

#include <vector>

#include "../parallel.h"
#include "maps.h"
#include "parameters.h"
#include "product.h"
#include "winograd.h"

namespace sharpmask::SHARPMASK_ISA {

// Outputs that a product computes at once.
template <class T>
constexpr int64_t panel = 2 * lanes<T>;

template <class T>
int64_t panels_of(int64_t outputs) {
    return (outputs + panel<T> - 1) / panel<T>;
}

// c[r][column] (+)= sum over k of a[r * RowStep + k * KStep] * b[k][column], for R rows and V vectors of
// columns. Rows of b and c are a panel long.
template <class T, int R, int V, int RowStep, int KStep>
void add_product(int64_t depth, const T* a, const T* b, bool fresh, T* c) {
    Vector<T> sums[R][V];
#pragma GCC unroll 24
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) {
            sums[r][v] = Vector<T>{};
            __builtin_prefetch(c + r * panel<T> + v * lanes<T>, 1);
        }
    }
    for (int64_t k = 0; k < depth; ++k, a += KStep, b += panel<T>) {
        Vector<T> columns[V];
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) columns[v] = load(b + v * lanes<T>);
#pragma GCC unroll 24
        for (int r = 0; r < R; ++r) {
            const Vector<T> row = splat(a[r * RowStep]);
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) sums[r][v] = fma(row, columns[v], sums[r][v]);
        }
    }
#pragma GCC unroll 24
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) {
            T* to = c + r * panel<T> + v * lanes<T>;
            store(to, fresh ? sums[r][v] : load(to) + sums[r][v]);
        }
    }
}

// The same for any number of rows, and `outputs` columns: those beyond them, in a panel, may be left out.
template <class T, int RowStep, int KStep>
void add_products(int64_t rows, int64_t depth, const T* a, const T* b, int64_t outputs, bool fresh, T* c) {
    const auto all_rows = [&](auto vectors) {
        constexpr int V = vectors, most = (vector_registers == 32 ? 24 : 12) / V;
        int64_t r = 0;
        const auto run = [&](auto at_once) {
            constexpr int R = at_once;
            for (; r + R <= rows; r += R)
                add_product<T, R, V, RowStep, KStep>(depth, a + r * RowStep, b, fresh, c + r * panel<T>);
        };
        run(std::integral_constant<int, most>());
        run(std::integral_constant<int, 4>());
        run(std::integral_constant<int, 1>());
    };
    outputs > lanes<T> ? all_rows(std::integral_constant<int, 2>())
                       : all_rows(std::integral_constant<int, 1>());
}

// Runs task.run(block, first panel, last panel) for all blocks of tiles and panels of outputs, and done(task)
// once for each task = make() of a thread. Where blocks are too few for all threads, panels are cut too.
template <class Make, class Done>
void run_tile_blocks(int64_t blocks, int64_t panels, int threads, const Make& make, const Done& done) {
    if (blocks == 0 || panels == 0) return;
    const int64_t groups = std::clamp<int64_t>(2 * threads / blocks, 1, threads > 1 ? panels : 1);
    parallel_for(blocks * groups, threads, make, [&](auto& task, int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t group = i % groups;
            task.run(i / groups, group * panels / groups, (group + 1) * panels / groups);
        }
        done(task);
    });
}

// Channels [begin, end).
struct ChannelRange {
    int64_t begin = 0, end = 0;
};

// Weights as products read them, a panel of outputs at a time: [position][input][output of the panel]. They
// are G w G' at 16 positions or, if `Raw`, w at 9. Up to kept_bytes they are kept. Larger ones would only
// pass through the caches: they are made anew for every block of tiles, and blocks are larger.
template <class T, bool Raw>
class PanelWeights {
  public:
    // For the inputs `nearest`, only the positions are made that tiles of a map upsampled so have.
    explicit PanelWeights(const TensorView& weight, ChannelRange nearest = {})
        : step(weight.sizes[1] * panel<T> + 64 / static_cast<int64_t>(sizeof(T))),
          weight_(weight),
          nearest_(nearest),
          panels_(all_kept(weight) ? panels_of<T>(weight.sizes[0]) : 1, none),
          memory_(Buffer<T>::unset(static_cast<int64_t>(panels_.size()) * count * step)),
          taps_(lanes<T> * 9 * lanes<T>) {}

    // From one position to the next. Positions are written side by side: at distances of a power of 2 they
    // would compete for the same lines of the cache.
    const int64_t step;

    static bool all_kept(const TensorView& weight) {
        const int64_t values = count * weight.sizes[1] * panels_of<T>(weight.sizes[0]) * panel<T>;
        return values * static_cast<int64_t>(sizeof(T)) <= kept_bytes;
    }

    const T* of(int64_t which) {
        const int64_t place = panels_.size() > 1 ? which : 0;
        T* to = memory_.get() + place * count * step;
        if (panels_[place] == which) return to;
        panels_[place] = which;
        const int64_t first = which * panel<T>, last = std::min(first + panel<T>, weight_.sizes[0]);
        for (int64_t i = 0; i < weight_.sizes[1]; i += lanes<T>) {
            for (int64_t o = first; o < last; o += lanes<T>) make(o, i, to + i * panel<T> + o - first);
        }
        return to;
    }

  private:
    static constexpr int count = Raw ? 9 : positions;
    static constexpr int64_t kept_bytes = 4 << 20, none = -1;

    const TensorView weight_;
    const ChannelRange nearest_;
    std::vector<int64_t> panels_;  // those in memory
    Buffer<T> memory_, taps_;

    // For a vector of outputs and as many inputs.
    void make(int64_t output, int64_t input, T* to) {
        read_taps(output, input);
        const int64_t inputs = std::min<int64_t>(lanes<T>, weight_.sizes[1] - input);
        for (int64_t i = 0; i < inputs; ++i, to += panel<T>) {
            Vector<T> taps[9];
            for (int tap = 0; tap < 9; ++tap) taps[tap] = load(taps_.get() + (i * 9 + tap) * lanes<T>);
            if constexpr (Raw) {
                for (int tap = 0; tap < 9; ++tap) store(to + tap * step, taps[tap]);
            } else {
                Vector<T> u[positions];
                transform_taps(taps, u);
                const bool nine = input + i >= nearest_.begin && input + i < nearest_.end;
                for (int p = 0; p < positions; ++p) {
                    if (!nine || is_nonzero(p)) store(to + p * step, u[p]);
                }
            }
        }
    }

    // [input][tap][output], with 0 where there is none
    void read_taps(int64_t output, int64_t input) {
        const int64_t no = std::min<int64_t>(weight_.sizes[0] - output, lanes<T>);
        const int64_t ni = std::min<int64_t>(weight_.sizes[1] - input, lanes<T>);
        const Strides s = strides_of(weight_);
        const bool dense = s.channel == 9 && s.row == 3 && s.col == 1;
        if (no < lanes<T>) std::fill_n(taps_.get(), lanes<T> * 9 * lanes<T>, T{0});
        with_pointer<T>(weight_.dtype, static_cast<const void*>(weight_.data), [&](const auto* from) {
            from += output * s.batch + input * s.channel;
            if (dense) return copy_matrix(from, 1, s.batch, ni * 9, no, taps_.get(), lanes<T>);
            for (int tap = 0; tap < 9; ++tap) {
                copy_matrix(from + tap / 3 * s.row + tap % 3 * s.col, s.channel, s.batch, ni, no,
                            taps_.get() + tap * lanes<T>, 9 * lanes<T>);
            }
        });
    }
};

}  // namespace sharpmask::SHARPMASK_ISA
