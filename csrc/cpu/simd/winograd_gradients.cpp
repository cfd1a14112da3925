// The gradients of the weight and bias of a wide convolution: see winograd.h.

#include "../parallel.h"
#include "kernels.h"
#include "tile_gradients.h"

namespace sharpmask::SHARPMASK_ISA {
namespace {

constexpr int64_t wide_gradient_tasks = 32;  // each has sums of its own, added up at the end
constexpr int64_t share_blocks = 4;          // at least, so that sums cost little beside products
constexpr int64_t gradient_tiles = 60;       // of a block; which sums are made must not depend on threads
constexpr int64_t grouped_outputs = 64;

// Of a block of tiles: the gradient, [position][panel][tile][output].
template <class T>
GradientOrder<T> by_panels(int64_t panels) {
    return {panels * gradient_tiles * panel<T>, panel<T>, gradient_tiles * panel<T>};
}

// Where a task's sums lie: [position][panel][input][output].
template <class T>
struct SumsOrder {
    int64_t positions_used, panels;

    int64_t size() const { return positions_used * panels * inputs_at_once * panel<T>; }
    int64_t operator()(int position, int64_t input, int64_t output) const {
        return ((position * panels + output / panel<T>)*inputs_at_once + input) * panel<T> +
               output % panel<T>;
    }
};

// How the gradient is cut into tasks: shares of the tiles, parts of the inputs and groups of the outputs. The
// cut depends on nothing but the size.
struct WideGradientCut {
    int64_t parts, groups, blocks, shares;

    WideGradientCut(const WideGradient& a, const Tiles& tiles)
        : parts(std::max<int64_t>((a.input.map.channels + inputs_at_once - 1) / inputs_at_once, 1)),
          groups(std::max<int64_t>((a.grad.channels + grouped_outputs - 1) / grouped_outputs, 1)),
          blocks((tiles.count() + gradient_tiles - 1) / gradient_tiles),
          shares(std::clamp<int64_t>(wide_gradient_tasks / (parts * groups), 1,
                                     std::max<int64_t>(blocks / share_blocks, 1))) {}

    int64_t count() const { return shares * parts * groups; }
    int64_t first_block(int64_t share) const { return share * blocks / shares; }
};

// The sums over some blocks of tiles, for some inputs and outputs.
template <class T>
class WideGradientSums {
  public:
    WideGradientSums(const WideGradient& a, const Tiles& tiles, const SumsOrder<T>& order)
        : a_(a),
          tiles_(tiles),
          order_(order),
          read_order_(by_panels<T>(order.panels)),
          gradients_(a.grad, tiles, a.input.upsampling, a.zeros),
          input_(a.input, a.zeros, tiles),
          cells_(a.input.map, a.zeros, 1, tiles_side_by_side),
          inputs_(Buffer<T>::unset(positions * input_step)),
          grad_(Buffer<T>::unset(gradients_.count() * read_order_.position)) {}

    // weight: in the order of sums, set if `fresh`, else added to; or null. bias: null, or [output]
    void add(int64_t block, bool fresh, int64_t channel, int64_t output, T* weight, T* bias) {
        const int64_t begin = block * gradient_tiles, end = std::min(begin + gradient_tiles, tiles_.count());
        const int64_t outputs = std::min(a_.grad.channels - output, grouped_outputs);
        gradients_.read(begin, end, output, outputs, read_order_, grad_.get());
        if (bias != nullptr) add_bias(end - begin, outputs, bias);
        if (weight == nullptr) return;
        const int64_t channels = std::min(a_.input.map.channels - channel, inputs_at_once);
        read_input(begin, end, channel, channels);
        for (int p = 0; p < gradients_.count(); ++p) {
            const T* x = inputs_.get() + (a_.input.upsampling ? 0 : p * input_step);
            for (int64_t o = 0; o < outputs; o += panel<T>)
                add_products<T, 1, inputs_at_once>(channels, end - begin, x,
                                                   grad_.get() + read_order_(p, 0, o), outputs - o, fresh,
                                                   weight + order_(p, 0, o));
        }
    }

  private:
    static constexpr int64_t input_step = gradient_tiles * inputs_at_once;  // from one position to the next

    const WideGradient& a_;
    const Tiles& tiles_;
    const SumsOrder<T> order_;
    const GradientOrder<T> read_order_;
    TileGradients<T> gradients_;
    TransformedInput<T> input_;
    WindowCells<T> cells_;
    Buffer<T> inputs_;  // B'x B: [position][tile][channel], or of an upsampled map its cells: [cell][channel]
    Buffer<T> grad_;

    void add_bias(int64_t tiles, int64_t outputs, T* bias) const {
        for (int64_t o = 0; o < outputs; o += lanes<T>) {
            Vector<T> sum = load(bias + o);
            for (int64_t t = 0; t < tiles; ++t)
                sum += load(grad_.get() + read_order_(gradients_.whole(), t, o));
            store(bias + o, sum);
        }
    }

    void read_input(int64_t begin, int64_t end, int64_t channel, int64_t channels) {
        if (!a_.input.upsampling)
            return input_.read(begin, end, channel, channels, inputs_.get(), input_step);
        tiles_.stretches(begin, end, tiles_side_by_side, [&](const Stretch& s) {
            cells_.read(s.image, s.row, s.col, s.count, channel, channels);
            for (int64_t i = 0; i < s.count; ++i)
                std::copy_n(cells_.at(0, i), channels, inputs_.get() + (s.place + i) * inputs_at_once);
        });
    }
};

// Writes the gradient of an input's weights from the sums of all tasks, whose shares are summed in their
// order.
template <class T>
void write_weight_gradient(const WideGradient& a, const WideGradientCut& cut, const SumsOrder<T>& order,
                           const T* all, int64_t input) {
    const Strides s = strides_of(a.weight);
    T* to = static_cast<T*>(a.weight.data) + input * s.channel;
    for (int64_t o = 0; o < a.grad.channels; o += lanes<T>) {
        const T* first = all + (input / inputs_at_once * cut.groups + o / grouped_outputs) * order.size();
        Vector<T> u[positions], taps[9];
        for (int p = 0; p < order.positions_used; ++p) {
            const T* from = first + order(p, input % inputs_at_once, o % grouped_outputs);
            u[p] = load(from);
            for (int64_t share = 1; share < cut.shares; ++share)
                u[p] += load(from + share * cut.parts * cut.groups * order.size());
        }
        a.input.upsampling ? static_cast<void>(std::copy_n(u, 9, taps)) : gather_taps(u, taps);
        T values[9][lanes<T>];
        for (int tap = 0; tap < 9; ++tap) store(values[tap], taps[tap]);
        for (int64_t i = 0; i < std::min<int64_t>(lanes<T>, a.grad.channels - o); ++i) {
            for (int tap = 0; tap < 9; ++tap)
                to[(o + i) * s.batch + tap / 3 * s.row + tap % 3 * s.col] = values[tap][i];
        }
    }
}

template <class T>
void wide_parameter_gradients(const WideGradient& a) {
    const Tiles tiles{a.grad.batch, a.grad.height, a.grad.width, a.top, a.left};
    const WideGradientCut cut(a, tiles);
    const int64_t outputs = a.grad.channels, padded = cut.groups * grouped_outputs;
    const SumsOrder<T> order{a.input.upsampling ? 9 : positions,
                             std::min(panels_of<T>(outputs), panels_of<T>(grouped_outputs))};
    const int64_t size = a.weight.data == nullptr ? 0 : cut.count() * order.size();
    const Buffer<T> weights = cut.blocks == 0 ? Buffer<T>(size) : Buffer<T>::unset(size);
    const Buffer<T> biases(a.bias == nullptr ? 0 : cut.shares * padded);
    parallel_for(
        cut.count(), a.threads, [&] { return WideGradientSums<T>(a, tiles, order); },
        [&](WideGradientSums<T>& sums, int64_t begin, int64_t end) {
            for (int64_t task = begin; task < end; ++task) {
                const int64_t share = task / (cut.parts * cut.groups), part = task / cut.groups % cut.parts;
                const int64_t output = task % cut.groups * grouped_outputs;
                T* weight = a.weight.data == nullptr ? nullptr : weights.get() + task * order.size();
                T* bias = a.bias == nullptr || part > 0 ? nullptr : biases.get() + share * padded + output;
                const int64_t first = cut.first_block(share);
                for (int64_t block = first; block < cut.first_block(share + 1); ++block)
                    sums.add(block, block == first, part * inputs_at_once, output, weight, bias);
            }
        });
    T* bias = static_cast<T*>(a.bias);
    for (int64_t o = 0; bias != nullptr && o < outputs; ++o) {
        bias[o] = 0;
        for (int64_t share = 0; share < cut.shares; ++share) bias[o] += biases.get()[share * padded + o];
    }
    if (a.weight.data == nullptr) return;
    parallel_for(a.input.map.channels, a.threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) write_weight_gradient<T>(a, cut, order, weights.get(), i);
    });
}

}  // namespace

void wide_gradient(const WideGradient& a) {
    in_precision_of(a.input.map.dtype, [&](auto zero) { wide_parameter_gradients<decltype(zero)>(a); });
}

}  // namespace sharpmask::SHARPMASK_ISA
