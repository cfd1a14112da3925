#include "winograd.h"

#include <array>
#include <atomic>

#include "../parallel.h"
#include "kernels.h"

namespace sharpmask::SHARPMASK_ISA {
namespace {

constexpr int64_t gradient_tasks = 32;  // each has sums of its own, added up at the end

// G w G' of every pair of an input and an output, for `step` outputs at a time: [position][input][output],
// with zeros where there is none.
template <class T>
class TransformedWeight {
  public:
    TransformedWeight(const TensorView& weight, int threads)
        : outputs_(weight.sizes[0]),
          inputs_(weight.sizes[1]),
          step(std::min(round_up<T>(outputs_), panel_outputs)),
          memory_((outputs_ + step - 1) / step * positions * inputs_ * step) {
        with_pointer<T>(weight.dtype, static_cast<const void*>(weight.data), [&](const auto* from) {
            parallel_for((inputs_ + lanes<T> - 1) / lanes<T>, threads, [&](int64_t begin, int64_t end) {
                const Buffer<T> taps(lanes<T> * 9 * lanes<T>);
                for (int64_t i = begin * lanes<T>; i < std::min(end * lanes<T>, inputs_); i += lanes<T>) {
                    for (int64_t o = 0; o < outputs_; o += lanes<T>)
                        put(from, weight.strides, i, o, taps.get());
                }
            });
        });
    }

    // Of outputs from `output` on, a multiple of `step`.
    const T* of(int position, int64_t input, int64_t output) const { return at(position, input, output); }

  private:
    const int64_t outputs_, inputs_;

  public:
    const int64_t step;

  private:
    const Buffer<T> memory_;

    T* at(int position, int64_t input, int64_t output) const {
        return memory_.get() + ((output / step * positions + position) * inputs_ + input) * step +
               output % step;
    }

    // A vector of inputs and of outputs. `taps`: [input][tap][output]
    template <class From>
    void put(const From* from, const std::array<int64_t, 4>& strides, int64_t input, int64_t output,
             T* taps) const {
        const auto& [of_output, of_input, of_row, of_col] = strides;
        const int64_t inputs = std::min<int64_t>(inputs_ - input, lanes<T>);
        const int64_t outputs = std::min<int64_t>(outputs_ - output, lanes<T>);
        from += output * of_output + input * of_input;
        if (outputs < lanes<T>) std::fill_n(taps, inputs * 9 * lanes<T>, T{0});
        if (of_col == 1 && of_row == 3 && of_input == 9) {
            copy_matrix(from, 1, of_output, inputs * 9, outputs, taps, lanes<T>);
        } else {
            for (int64_t tap = 0; tap < 9; ++tap)
                copy_matrix(from + tap / 3 * of_row + tap % 3 * of_col, of_input, of_output, inputs, outputs,
                            taps + tap * lanes<T>, 9 * lanes<T>);
        }
        for (int64_t i = 0; i < inputs; ++i) transform(taps + i * 9 * lanes<T>, at(0, input + i, output));
    }

    void transform(const T* taps, T* to) const {
        using V = Vector<T>;
        const V half = splat(T(0.5));
        const auto turn = [&](V a, V b, V c, auto& four) {
            four[0] = a;
            four[1] = (a + c + b) * half;
            four[2] = (a + c - b) * half;
            four[3] = c;
        };
        V columns[3][4];
        for (int j = 0; j < 3; ++j)
            turn(load(taps + j * lanes<T>), load(taps + (3 + j) * lanes<T>), load(taps + (6 + j) * lanes<T>),
                 columns[j]);
        for (int i = 0; i < 4; ++i) {
            V four[4];
            turn(columns[0][i], columns[1][i], columns[2][i], four);
            for (int j = 0; j < 4; ++j) store(to + (4 * i + j) * inputs_ * step, four[j]);
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
        const int64_t step = weight_.step, inputs = a_.input.channels, outputs = a_.out.channels;
        for (int64_t o = 0; o < outputs; o += step) {
            for (int64_t c = 0; c < inputs; c += inputs_at_once) {
                const int64_t channels = std::min(inputs - c, inputs_at_once);
                if (o == 0 || inputs > inputs_at_once) tiles_read_ = input_.read(block, c, channels);
                for (int i = 0; i < positions; ++i)
                    add_products<T, inputs_at_once, 1>(tiles_read_, channels, input_.of(i),
                                                       weight_.of(i, c, o),
                                                       std::min(step, round_up<T>(outputs - o)), step, c == 0,
                                                       sums_.get() + i * tiles_at_once * step);
            }
            with_pointer<T>(a_.out.dtype, const_cast<void*>(a_.out.data),
                            [&](auto* to) { write(block, o, to); });
        }
    }

    bool finite() const {
        bool all = true;
        for (int i = 0; i < lanes<T>; ++i) all = all && zeros_[i] == 0;
        return all;
    }

  private:
    const WideForward& a_;
    const TransformedWeight<T>& weight_;
    const T* bias_;  // in whole vectors
    const Tiles& tiles_;
    TransformedInput<T> input_;
    Buffer<T> sums_;
    int64_t tiles_read_ = 0;
    Vector<T> zeros_{};  // times every result

    template <class To>
    void write(int64_t block, int64_t first, To* data) {
        const Strides& s = a_.out.strides;
        const int64_t step = weight_.step, outputs = std::min(a_.out.channels - first, step);
        const int64_t start = a_.folds ? 1 : 0;  // of the result in the tiles
        tiles_.each(block, [&](int64_t place, int64_t image, int64_t y, int64_t x) {
            To* to = data + image * s.batch + (y - start) * s.row + (x - start) * s.col + first * s.channel;
            const Kept rows = kept(y, tiles_.height), cols = kept(x, tiles_.width);
            for (int64_t o = 0; o < outputs; o += lanes<T>) {
                Vector<T> m[positions], cells[4];
                for (int i = 0; i < positions; ++i)
                    m[i] = load(sums_.get() + (i * tiles_at_once + place) * step + o);
                gather_cells(m, cells);
                if (a_.folds) fold(rows, cols, cells);
                for (int i = 0; i < 4; ++i) {
                    zeros_ = fma(cells[i], Vector<T>{}, zeros_);
                    if (!rows.has[i / 2] || !cols.has[i % 2]) continue;
                    const Vector<T> v = cells[i] + load(bias_ + first + o);
                    put(a_.relu ? relu(v) : v, outputs - o, s.channel,
                        to + i / 2 * s.row + i % 2 * s.col + o * s.channel);
                }
            }
        });
    }

    // Which of a tile's two rows or columns are in the result.
    struct Kept {
        bool has[2];
    };

    Kept kept(int64_t at, int64_t length) const {
        if (a_.folds) return {{at > 0, at < length - 2}};
        return {{true, at + 1 < length}};
    }

    // Adds what lies beyond the border to the cell at the border.
    static void fold(const Kept& rows, const Kept& cols, Vector<T> (&cells)[4]) {
        for (int i = 0; i < 2; ++i) {
            if (rows.has[i]) continue;
            for (int j = 0; j < 2; ++j) cells[2 * (1 - i) + j] += cells[2 * i + j];
        }
        for (int j = 0; j < 2; ++j) {
            if (cols.has[j]) continue;
            for (int i = 0; i < 2; ++i) cells[2 * i + 1 - j] += cells[2 * i + j];
        }
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

// Returns whether all results are finite.
template <class T>
bool convolve_wide(const WideForward& a) {
    const int64_t beyond = a.folds ? 2 : 0;
    const Tiles tiles{a.out.batch, a.out.height + beyond, a.out.width + beyond, a.top, a.left};
    if (a.out.batch * a.out.channels * a.out.height * a.out.width == 0) return true;
    const TransformedWeight<T> weight(a.weight, a.threads);
    const Dense<T> dense = dense_or_null<T>(a.bias);
    const Buffer<T> bias(round_up<T>(a.out.channels));
    if (dense.get() != nullptr) std::copy_n(dense.get(), a.out.channels, bias.get());
    std::atomic<bool> finite{true};
    parallel_for(
        tiles.blocks(), a.threads, [&] { return WideConvolution<T>(a, weight, bias.get(), tiles); },
        [&](WideConvolution<T>& convolution, int64_t begin, int64_t end) {
            for (int64_t block = begin; block < end; ++block) convolution.run(block);
            if (!convolution.finite()) finite = false;
        });
    return finite;
}

// The sums over some blocks of tiles for some input channels.
template <class T>
class WideGradientSums {
  public:
    WideGradientSums(const WideGradient& a, const Tiles& tiles)
        : a_(a),
          tiles_(tiles),
          step_(round_up<T>(a.grad.channels)),
          input_(a.input, a.zeros, tiles),
          spread_(positions * tiles_at_once * step_) {}

    // weight: [position][input of inputs_at_once][output]; bias: null, or [output]
    void add(int64_t block, int64_t channel, T* weight, T* bias) {
        const int64_t channels = std::min(a_.input.channels - channel, inputs_at_once);
        const int64_t tiles = input_.read(block, channel, channels);
        read_gradient(block, bias);
        for (int i = 0; i < positions; ++i)
            add_products<T, 1, inputs_at_once>(channels, tiles, input_.of(i),
                                               spread_.get() + i * tiles_at_once * step_, step_, step_, false,
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

// G'u G of one input and a vector of outputs; u's positions are `step` apart.
template <class T>
void gather_weights(const T* u, int64_t step, Vector<T> (&to)[9]) {
    using V = Vector<T>;
    const V half = splat(T(0.5));
    const auto turn = [&](V a, V b, V c, V d, V& first, V& second, V& third) {
        const V sum = (b + c) * half;
        first = a + sum;
        second = (b - c) * half;
        third = sum + d;
    };
    V rows[3][4];
    for (int j = 0; j < 4; ++j)
        turn(load(u + j * step), load(u + (4 + j) * step), load(u + (8 + j) * step),
             load(u + (12 + j) * step), rows[0][j], rows[1][j], rows[2][j]);
    for (int i = 0; i < 3; ++i)
        turn(rows[i][0], rows[i][1], rows[i][2], rows[i][3], to[3 * i], to[3 * i + 1], to[3 * i + 2]);
}

// A map in T with the channels of a cell side by side: itself if it is that, else a copy.
template <class T>
class ByPixel {
  public:
    ByPixel(const TypedMap& map, int threads) : map_(map) {
        if (map.strides.channel == 1 && bytes_of(map.dtype) == sizeof(T)) return;
        const int64_t length = map.width * map.channels;
        copy_ = Buffer<T>(map.batch * map.height * length);
        parallel_for(map.batch * map.height, threads, [&](int64_t begin, int64_t end) {
            const Buffer<T> scratch(round_up<T>(map.width) * map.channels);
            for (int64_t i = begin; i < end; ++i)
                read_pixels(map, i / map.height, i % map.height, 0, map.channels, map.width,
                            copy_.get() + i * length, scratch.get());
        });
        map_.data = copy_.get();
        map_.dtype = sizeof(T) == sizeof(double) ? DType::float64 : DType::float32;
        map_.strides = {map.height * length, 1, length, map.channels};
    }

    const TypedMap& map() const { return map_; }

  private:
    TypedMap map_;
    Buffer<T> copy_;
};

// A task sums over a share of the tiles for a part of the inputs. The cut depends on nothing but the size.
template <class T>
void wide_parameter_gradients(const WideGradient& given) {
    const ByPixel<T> grad(given.grad, given.threads);
    WideGradient a = given;
    a.grad = grad.map();
    const Tiles tiles{a.grad.batch, a.grad.height, a.grad.width, a.top, a.left};
    const int64_t inputs = a.input.channels, outputs = a.grad.channels, step = round_up<T>(outputs);
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
            for (int64_t o = 0; o < outputs; o += lanes<T>) {
                Vector<T> taps[9];
                gather_weights(sums.get() + o, step, taps);
                for (int64_t j = 0; j < std::min<int64_t>(lanes<T>, outputs - o); ++j) {
                    for (int tap = 0; tap < 9; ++tap) weight[((o + j) * inputs + i) * 9 + tap] = taps[tap][j];
                }
            }
        }
    });
}

}  // namespace

bool wide_forward(const WideForward& a) {
    bool finite = true;
    in_precision_of(a.input.dtype, [&](auto zero) { finite = convolve_wide<decltype(zero)>(a); });
    return finite;
}

void wide_gradient(const WideGradient& a) {
    in_precision_of(a.input.dtype, [&](auto zero) { wide_parameter_gradients<decltype(zero)>(a); });
}

}  // namespace sharpmask::SHARPMASK_ISA
