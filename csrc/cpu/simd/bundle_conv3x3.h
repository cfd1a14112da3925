// 3x3 convolutions of a bundle: as many maps as a vector has lanes, of which each lane holds one. All lanes
// are full whatever the channels and the width, and no value changes its lane.
#pragma once

#include <cstdint>

#include "composite.h"
#include "planes.h"
#include "vector.h"

namespace sharpmask::SHARPMASK_ISA {

// What follows a convolution.
enum class Then { relu, add_horizontal_and_relu, output };

// One convolution. It sums in the same order as Conv3x3, so that both give the same bits.
template <class T>
class BundleConv3x3 {
  public:
    // As Conv3x3's.
    BundleConv3x3(const T* weight, const T* bias, int64_t inputs, int64_t outputs, int64_t height,
                  int64_t width, bool upsampled, bool nearest, bool zeros);

    int64_t inputs, outputs;  // outputs of one phase
    int64_t height, width;    // of the input
    bool upsampled;
    int64_t rows;  // phases times outputs

    // Row `y` of the output. `from` points at the left border cells of rows y - 1, y, y + 1; the channels of
    // a cell lie side by side, each a vector. Output `phase * outputs + o` of cell x goes to to[...] + x *
    // step. There lies what is added first, if that is what follows.
    void row(const T* const (&from)[3], int64_t y, T* const* to, int64_t step, Then then) const;

  private:
    bool bordered_;
    int64_t set_;  // the size of one set of weights
    Buffer<T> weights_, bias_;

    // The weights of the cells that touch these borders.
    T* weights(int vertical, int horizontal) const {
        return weights_.get() + (bordered_ ? vertical * border_kinds + horizontal : 0) * set_;
    }
};

template <class T>
BundleConv3x3<T>::BundleConv3x3(const T* weight, const T* bias, int64_t inputs, int64_t outputs,
                                int64_t height, int64_t width, bool upsampled, bool nearest, bool zeros)
    : inputs(inputs),
      outputs(outputs),
      height(height),
      width(width),
      upsampled(upsampled),
      rows((upsampled ? 4 : 1) * outputs),
      bordered_(upsampled && zeros),
      set_(inputs * 9 * rows),
      weights_(set_ * (bordered_ ? border_kinds * border_kinds : 1)),
      bias_(rows) {
    for (int64_t i = 0; i < rows && bias != nullptr; ++i) bias_.get()[i] = bias[i % outputs];
    if (!upsampled) {
        pack(weight, inputs, outputs, PackedWeights<T>{weights_.get(), rows, 1});
        return;
    }
    const int kinds = bordered_ ? border_kinds : 1;
    for (int vertical = 0; vertical < kinds; ++vertical) {
        for (int horizontal = 0; horizontal < kinds; ++horizontal) {
            if (bordered_ && !(borders_occur(vertical, height) && borders_occur(horizontal, width))) continue;
            pack_composite(weight, inputs, outputs, upsampling_taps(nearest, vertical),
                           upsampling_taps(nearest, horizontal),
                           PackedWeights<T>{weights(vertical, horizontal), rows, 1});
        }
    }
}

// O outputs of P cells, which are `col` apart.
template <class T, int O, int P>
void accumulate_bundle(const T* const (&from)[3], int64_t col, int64_t inputs, const T* weights, int64_t rows,
                       const T* bias, T* const* to, int64_t step, Then then) {
    Vector<T> sums[O][P];
#pragma GCC unroll 16
    for (int o = 0; o < O; ++o) {
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) sums[o][p] = splat(bias[o]);
    }
    for (int64_t i = 0; i < inputs; ++i) {
        for (int ky = 0; ky < 3; ++ky) {
            const T* cells = from[ky] + i * lanes<T>;
            // Not unrolled: the compiler would keep sums in memory to have the next taps' cells at hand.
#pragma GCC unroll 1
            for (int kx = 0; kx < 3; ++kx, cells += col, weights += rows) {
                Vector<T> x[P];
#pragma GCC unroll 16
                for (int p = 0; p < P; ++p) x[p] = load(cells + p * col);
#pragma GCC unroll 16
                for (int o = 0; o < O; ++o) {
                    const Vector<T> w = splat(weights[o]);
#pragma GCC unroll 16
                    for (int p = 0; p < P; ++p) sums[o][p] = fma(w, x[p], sums[o][p]);
                }
            }
        }
    }
#pragma GCC unroll 16
    for (int o = 0; o < O; ++o) {
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) {
            T* at = to[o] + p * step;
            const Vector<T> sum = then == Then::add_horizontal_and_relu ? sums[o][p] + load(at) : sums[o][p];
            store(at, then == Then::output ? sum : relu(sum));
        }
    }
}

// Cells [x, end) in blocks of P, then of fewer. A block of one is avoided where possible: it has few sums,
// and each waits for the one before it.
template <class T, int P>
void blocks_of_bundle(const T* const (&from)[3], const BundleConv3x3<T>& conv, const T* weights,
                      const T* bias, T* const* to, int64_t step, Then then, int64_t x, int64_t end) {
    const int64_t col = conv.inputs * lanes<T>;
    for (; x + P <= end && (P <= 2 || end - x != P + 1); x += P) {
        const T* const cells[3] = {from[0] + x * col, from[1] + x * col, from[2] + x * col};
        int64_t o = 0;
        const auto run = [&](auto at_once) {
            constexpr int O = at_once;
            for (; o + O <= conv.rows; o += O) {
                T* at[O];
                for (int i = 0; i < O; ++i) at[i] = to[o + i] + x * step;
                accumulate_bundle<T, O, P>(cells, col, conv.inputs, weights + o, conv.rows, bias + o, at,
                                           step, then);
            }
        };
        run(std::integral_constant<int, 4>());
        run(std::integral_constant<int, 1>());
    }
    if constexpr (P > 1) blocks_of_bundle<T, P - 1>(from, conv, weights, bias, to, step, then, x, end);
}

template <class T>
void BundleConv3x3<T>::row(const T* const (&from)[3], int64_t y, T* const* to, int64_t step,
                           Then then) const {
    constexpr int most = vector_registers == 32 ? 5 : 3;  // 20 sums or 12
    const int vertical = borders_at(y, height);
    const auto columns = [&](int64_t x, int64_t end) {
        blocks_of_bundle<T, most>(from, *this, weights(vertical, borders_at(x, width)), bias_.get(), to, step,
                                  then, x, end);
    };
    if (bordered_ && width > 1) {
        columns(0, 1);
        columns(1, width - 1);
        columns(width - 1, width);
    } else {
        columns(0, width);
    }
}

}  // namespace sharpmask::SHARPMASK_ISA
