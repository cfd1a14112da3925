#include "winograd.h"

#include "../parallel.h"
#include "kernels.h"

namespace sharpmask::SHARPMASK_ISA {
namespace {

constexpr int64_t gradient_tasks = 32;  // each has sums of its own, added up at the end

// G w G' of every pair of an input and an output: [position][input][output], with zeros where there is none.
template <class T>
class TransformedWeight {
  public:
    TransformedWeight(const TensorView& weight, int threads)
        : inputs_(weight.sizes[1]),
          step(padded_outputs<T>(weight.sizes[0])),
          memory_(positions * inputs_ * step) {
        const Dense<T> dense(weight);
        const int64_t outputs = weight.sizes[0];
        parallel_for(inputs_, threads, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
                for (int64_t o = 0; o < outputs; ++o)
                    put(dense.get() + (o * inputs_ + i) * 9, memory_.get() + i * step + o);
            }
        });
    }

    const T* of(int position, int64_t input) const {
        return memory_.get() + (position * inputs_ + input) * step;
    }

  private:
    const int64_t inputs_;

  public:
    const int64_t step;  // outputs, in whole vectors

  private:
    const Buffer<T> memory_;

    void put(const T* w, T* to) const {
        T rows[4][3];
        for (int j = 0; j < 3; ++j) {
            const T a = w[j], b = w[3 + j], c = w[6 + j];
            rows[0][j] = a;
            rows[1][j] = (a + c + b) / 2;
            rows[2][j] = (a + c - b) / 2;
            rows[3][j] = c;
        }
        for (int i = 0; i < 4; ++i) {
            const T a = rows[i][0], b = rows[i][1], c = rows[i][2];
            const T four[4] = {a, (a + c + b) / 2, (a + c - b) / 2, c};
            for (int j = 0; j < 4; ++j) to[(4 * i + j) * inputs_ * step] = four[j];
        }
    }
};

template <class T>
class WideConvolution {
  public:
    WideConvolution(const WideForward& a, const TransformedWeight<T>& weight, const T* bias,
                    const Tiles& tiles)
        : a_(a),
          weight_(weight),
          bias_(bias),
          tiles_(tiles),
          input_(a.input, a.zeros, tiles),
          sums_(positions * tiles_at_once * weight.step) {}

    void run(int64_t block) {
        const int64_t step = weight_.step;
        for (int64_t c = 0; c < a_.input.channels; c += inputs_at_once) {
            const int64_t channels = std::min(a_.input.channels - c, inputs_at_once);
            const int64_t tiles = input_.read(block, c, channels);
            for (int i = 0; i < positions; ++i)
                add_products<T, inputs_at_once, 1>(tiles, channels, input_.of(i), weight_.of(i, c), step,
                                                   c == 0, sums_.get() + i * tiles_at_once * step);
        }
        with_pointer<T>(a_.out.dtype, const_cast<void*>(a_.out.data), [&](auto* to) { write(block, to); });
    }

  private:
    const WideForward& a_;
    const TransformedWeight<T>& weight_;
    const T* bias_;  // in whole vectors
    const Tiles& tiles_;
    TransformedInput<T> input_;
    Buffer<T> sums_;

    template <class To>
    void write(int64_t block, To* data) const {
        const Strides& s = a_.out.strides;
        const int64_t step = weight_.step, outputs = a_.out.channels;
        tiles_.each(block, [&](int64_t place, int64_t image, int64_t y, int64_t x) {
            To* to = data + image * s.batch + y * s.row + x * s.col;
            for (int64_t o = 0; o < outputs; o += lanes<T>) {
                Vector<T> m[positions], cells[4];
                for (int i = 0; i < positions; ++i)
                    m[i] = load(sums_.get() + (i * tiles_at_once + place) * step + o);
                gather_cells(m, cells);
                for (int i = 0; i < 4; ++i) {
                    if (y + i / 2 >= tiles_.height || x + i % 2 >= tiles_.width) continue;
                    const Vector<T> v = cells[i] + load(bias_ + o);
                    put(a_.relu ? relu(v) : v, outputs - o, s.channel,
                        to + i / 2 * s.row + i % 2 * s.col + o * s.channel);
                }
            }
        });
    }

    template <class To>
    static void put(Vector<T> v, int64_t count, int64_t channel, To* to) {
        if constexpr (std::is_same_v<T, To>) {
            if (channel == 1) return store_some(to, v, count);
        }
        T all[lanes<T>];
        store(all, v);
        for (int64_t i = 0; i < std::min<int64_t>(count, lanes<T>); ++i) to[i * channel] = narrow<To>(all[i]);
    }
};

template <class T>
void convolve_wide(const WideForward& a) {
    const Tiles tiles{a.out.batch, a.out.height, a.out.width, a.top, a.left};
    if (tiles.count() == 0) return;
    const TransformedWeight<T> weight(a.weight, a.threads);
    const Dense<T> dense = dense_or_null<T>(a.bias);
    const Buffer<T> bias(weight.step);
    if (dense.get() != nullptr) std::copy_n(dense.get(), a.out.channels, bias.get());
    parallel_for(
        tiles.blocks(), a.threads, [&] { return WideConvolution<T>(a, weight, bias.get(), tiles); },
        [&](WideConvolution<T>& convolution, int64_t begin, int64_t end) {
            for (int64_t block = begin; block < end; ++block) convolution.run(block);
        });
}

// The sums over some blocks of tiles for some input channels.
template <class T>
class WideGradientSums {
  public:
    WideGradientSums(const WideGradient& a, const Tiles& tiles)
        : a_(a),
          tiles_(tiles),
          step_(padded_outputs<T>(a.grad.channels)),
          input_(a.input, a.zeros, tiles),
          spread_(positions * tiles_at_once * step_) {}

    // weight: [position][input of inputs_at_once][output]; bias: null, or [output]
    void add(int64_t block, int64_t channel, T* weight, T* bias) {
        const int64_t channels = std::min(a_.input.channels - channel, inputs_at_once);
        const int64_t tiles = input_.read(block, channel, channels);
        read_gradient(block, bias);
        for (int i = 0; i < positions; ++i)
            add_products<T, 1, inputs_at_once>(channels, tiles, input_.of(i),
                                               spread_.get() + i * tiles_at_once * step_, step_, false,
                                               weight + i * inputs_at_once * step_);
    }

  private:
    const WideGradient& a_;
    const Tiles& tiles_;
    const int64_t step_;
    TransformedInput<T> input_;
    Buffer<T> spread_;  // A dy A': [position][tile][output]

    void read_gradient(int64_t block, T* bias) {
        const Strides& s = a_.grad.strides;
        const int64_t outputs = a_.grad.channels;
        tiles_.each(block, [&](int64_t place, int64_t image, int64_t y, int64_t x) {
            const T* from = static_cast<const T*>(a_.grad.data) + image * s.batch + y * s.row + x * s.col;
            for (int64_t o = 0; o < outputs; o += lanes<T>) {
                Vector<T> cells[4], spread[positions];
                for (int i = 0; i < 4; ++i) {
                    const bool inside = y + i / 2 < tiles_.height && x + i % 2 < tiles_.width;
                    cells[i] = inside ? load_some<T>(from + i / 2 * s.row + i % 2 * s.col + o, outputs - o)
                                      : Vector<T>{};
                }
                spread_cells(cells, spread);
                for (int i = 0; i < positions; ++i)
                    store(spread_.get() + (i * tiles_at_once + place) * step_ + o, spread[i]);
                if (bias == nullptr) continue;
                store(bias + o, load(bias + o) + (cells[0] + cells[1] + cells[2] + cells[3]));
            }
        });
    }
};

// G'u G of one pair of an input and an output; u's positions are `step` apart.
template <class T>
void gather_weight(const T* u, int64_t step, T* to) {
    T rows[3][4];
    for (int j = 0; j < 4; ++j) {
        const T a = u[j * step], b = u[(4 + j) * step], c = u[(8 + j) * step], d = u[(12 + j) * step];
        rows[0][j] = a + (b + c) / 2;
        rows[1][j] = (b - c) / 2;
        rows[2][j] = (b + c) / 2 + d;
    }
    for (int i = 0; i < 3; ++i) {
        const T* r = rows[i];
        to[3 * i] = r[0] + (r[1] + r[2]) / 2;
        to[3 * i + 1] = (r[1] - r[2]) / 2;
        to[3 * i + 2] = (r[1] + r[2]) / 2 + r[3];
    }
}

// A task sums over a share of the tiles for a part of the inputs. The cut depends on nothing but the size.
template <class T>
void wide_parameter_gradients(const WideGradient& a) {
    const Tiles tiles{a.grad.batch, a.grad.height, a.grad.width, a.top, a.left};
    const int64_t inputs = a.input.channels, outputs = a.grad.channels, step = padded_outputs<T>(outputs);
    const int64_t parts = (inputs + inputs_at_once - 1) / inputs_at_once, blocks = tiles.blocks();
    const int64_t shares = std::max<int64_t>(1, std::min((gradient_tasks + parts - 1) / parts, blocks));
    const int64_t size = positions * inputs_at_once * step;
    const Buffer<T> weights(shares * parts * size), biases(shares * step);
    parallel_for(
        shares * parts, a.threads, [&] { return WideGradientSums<T>(a, tiles); },
        [&](WideGradientSums<T>& sums, int64_t begin, int64_t end) {
            for (int64_t task = begin; task < end; ++task) {
                const int64_t share = task / parts, part = task % parts;
                T* bias = part == 0 ? biases.get() + share * step : nullptr;
                for (int64_t block = share * blocks / shares; block < (share + 1) * blocks / shares; ++block)
                    sums.add(block, part * inputs_at_once, weights.get() + task * size, bias);
            }
        });
    // The shares are summed in their order.
    T* bias = static_cast<T*>(a.bias);
    for (int64_t o = 0; bias != nullptr && o < outputs; ++o) {
        bias[o] = 0;
        for (int64_t share = 0; share < shares; ++share) bias[o] += biases.get()[share * step + o];
    }
    T* weight = static_cast<T*>(a.weight);
    if (weight == nullptr) return;
    parallel_for(inputs, a.threads, [&](int64_t begin, int64_t end) {
        const Buffer<T> sums(positions * step);
        for (int64_t i = begin; i < end; ++i) {
            for (int p = 0; p < positions; ++p) {
                const T* from = weights.get() + i / inputs_at_once * size +
                                (p * inputs_at_once + i % inputs_at_once) * step;
                T* to = sums.get() + p * step;
                std::copy_n(from, step, to);
                for (int64_t share = 1; share < shares; ++share) {
                    for (int64_t o = 0; o < step; ++o) to[o] += from[share * parts * size + o];
                }
            }
            for (int64_t o = 0; o < outputs; ++o)
                gather_weight(sums.get() + o, step, weight + (o * inputs + i) * 9);
        }
    });
}

}  // namespace

void wide_forward(const WideForward& a) {
    in_precision_of(a.input.dtype, [&](auto zero) { convolve_wide<decltype(zero)>(a); });
}

void wide_gradient(const WideGradient& a) {
    in_precision_of(a.input.dtype, [&](auto zero) { wide_parameter_gradients<decltype(zero)>(a); });
}

}  // namespace sharpmask::SHARPMASK_ISA
