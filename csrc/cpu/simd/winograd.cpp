// Wide convolutions: see winograd.h.

#include <atomic>
#include <deque>

#include "activations.h"
#include "kernels.h"
#include "panels.h"
#include "tile_cells.h"

namespace sharpmask::SHARPMASK_ISA {
namespace {

// The weight's inputs that read a map upsampled by "nearest".
ChannelRange nearest_channels(const WideForward& a) {
    for (const JoinedMap& input : a.inputs) {
        if (input.upsampling == Upsampling::nearest)
            return {input.channel, input.channel + input.map.channels};
    }
    return {};
}

template <class T>
class WideConvolution {
  public:
    WideConvolution(const WideForward& a, const T* bias, const Tiles& tiles, int64_t block)
        : a_(a),
          bias_(bias),
          tiles_(tiles),
          block_(block),
          weight_(a.weight, nearest_channels(a)),
          sums_(positions * block * panel<T>),
          pixels_(Buffer<T>::unset(2 * 2 * block * panel<T>)),
          planes_(Buffer<T>::unset(2 * block * panel<T>)) {
        int64_t chunks = 0;
        for (const JoinedMap& input : a.inputs) {
            inputs_.emplace_back(input, a.zeros, tiles);
            chunks += (input.map.channels + inputs_at_once - 1) / inputs_at_once;
        }
        transformed_ = Buffer<T>::unset((keeps_ ? chunks : 1) * positions * position_step());
    }

    void run(int64_t block, int64_t first_panel, int64_t last_panel) {
        begin_ = block * block_;
        end_ = std::min(begin_ + block_, tiles_.count());
        for (int64_t p = first_panel; p < last_panel; ++p) {
            multiply(weight_.of(p), a_.out.channels - p * panel<T>, block != read_);
            write(p * panel<T>);
            if (keeps_) read_ = block;
        }
    }

    bool finite() const {
        bool all = true;
        for (int i = 0; i < lanes<T>; ++i) all = all && zeros_[i] == 0;
        return all;
    }

  private:
    const WideForward& a_;
    const T* bias_;  // in whole panels
    const Tiles& tiles_;
    const int64_t block_;
    PanelWeights<T, false> weight_;
    std::deque<TransformedInput<T>> inputs_;
    const bool keeps_ = a_.out.channels > panel<T>;  // transformed inputs, for the next panel
    Buffer<T> transformed_;                          // [chunk of channels][position][tile][channel]
    const Buffer<T> sums_;  // [position][tile][output of a panel]; 0 where no input has a position
    const Buffer<T> pixels_, planes_;
    int64_t read_ = -1, begin_ = 0, end_ = 0;
    Vector<T> zeros_{};  // times every result

    int64_t position_step() const { return block_ * inputs_at_once; }

    // Adds up the products of all inputs for a panel. Those that are read are multiplied while in the cache.
    void multiply(const T* weight, int64_t outputs, bool reads) {
        T* at = transformed_.get();
        bool fresh = true;
        for (std::size_t i = 0; i < a_.inputs.size(); ++i) {
            const JoinedMap& input = a_.inputs[i];
            for (int64_t c = 0; c < input.map.channels; c += inputs_at_once) {
                const int64_t channels = std::min(inputs_at_once, input.map.channels - c);
                if (reads) inputs_[i].read(begin_, end_, c, channels, at, position_step());
                for (int p = 0; p < positions; ++p) {
                    if (input.upsampling == Upsampling::nearest && !is_nonzero(p)) continue;
                    add_products<T, inputs_at_once, 1>(
                        end_ - begin_, channels, at + p * position_step(),
                        weight + p * weight_.step + (input.channel + c) * panel<T>, outputs, fresh,
                        sums_.get() + p * block_ * panel<T>);
                }
                fresh = false;
                if (keeps_) at += positions * position_step();
            }
        }
    }

    // The sums of a panel as outputs, straight to the map if its channels lie side by side.
    void write(int64_t output) {
        const TypedMap part = from_channel(a_.out, output);
        const bool direct = part.strides.channel == 1 && bytes_of(part.dtype) == sizeof(T);
        const int64_t outputs = std::min(part.channels, panel<T>), start = a_.folds ? 1 : 0;
        tiles_.stretches(begin_, end_, block_, [&](const Stretch& t) {
            const int64_t y = 2 * t.row - start, x = 2 * t.col - start;
            if (direct) {
                const Strides& s = part.strides;
                write_tiles(t, y, x, output, outputs, s,
                            static_cast<T*>(const_cast<void*>(part.data)) + t.image * s.batch + y * s.row +
                                x * s.col);
                return;
            }
            const Strides s{0, 1, 2 * t.count * panel<T>, panel<T>};
            write_tiles(t, y, x, output, outputs, s, pixels_.get());
            const int64_t first = std::max<int64_t>(x, 0), end = std::min(x + 2 * t.count, part.width);
            for (int64_t i = 0; i < 2; ++i) {
                if (!is_inside(y + i, part.height)) continue;
                write_cells(part, t.image, y + i, first, outputs, end - first,
                            pixels_.get() + i * s.row + (first - x) * s.col, panel<T>, planes_.get(),
                            2 * block_);
            }
        });
    }

    static bool is_inside(int64_t at, int64_t length) { return at >= 0 && at < length; }

    // The cells of some tiles, from row y and column x of the result on.
    void write_tiles(const Stretch& t, int64_t y, int64_t x, int64_t output, int64_t outputs,
                     const Strides& s, T* to) {
        for (int64_t i = 0; i < t.count; ++i, x += 2, to += 2 * s.col) {
            const bool rows[2] = {is_inside(y, a_.out.height), is_inside(y + 1, a_.out.height)};
            const bool cols[2] = {is_inside(x, a_.out.width), is_inside(x + 1, a_.out.width)};
            for (int64_t o = 0; o < outputs; o += lanes<T>) {
                Vector<T> m[positions], cells[4];
                for (int p = 0; p < positions; ++p)
                    m[p] = load(sums_.get() + (p * block_ + t.place + i) * panel<T> + o);
                gather_cells(m, cells);
                if (a_.folds) fold(rows, cols, cells);
                const Vector<T> bias = load(bias_ + output + o);
                for (int j = 0; j < 4; ++j) {
                    zeros_ = fma(cells[j], Vector<T>{}, zeros_);
                    if (rows[j / 2] && cols[j % 2]) {
                        store_some(to + j / 2 * s.row + j % 2 * s.col + o,
                                   activated<T>(cells[j] + bias, a_.activation), outputs - o);
                    }
                }
            }
        }
    }

    // Adds what lies beyond the border to the cell at the border.
    static void fold(const bool (&rows)[2], const bool (&cols)[2], Vector<T> (&cells)[4]) {
        for (int i = 0; i < 2; ++i) {
            for (int j = 0; j < 2 && !rows[i]; ++j) cells[2 * (1 - i) + j] += cells[2 * i + j];
        }
        for (int j = 0; j < 2; ++j) {
            for (int i = 0; i < 2 && !cols[j]; ++i) cells[2 * i + 1 - j] += cells[2 * i + j];
        }
    }
};

// Returns whether all results are finite.
template <class T>
bool convolve_wide(const WideForward& a) {
    const int64_t beyond = a.folds ? 2 : 0, panels = panels_of<T>(a.out.channels);
    if (a.out.batch * a.out.height * a.out.width * panels == 0) return true;
    const Tiles tiles{a.out.batch, a.out.height + beyond, a.out.width + beyond, a.top, a.left};
    const Dense<T> dense = dense_or_null<T>(a.bias);
    const Buffer<T> bias(panels * panel<T>);
    if (dense.get() != nullptr) std::copy_n(dense.get(), a.out.channels, bias.get());
    const int64_t block = block_of_tiles(tiles.count(), PanelWeights<T, false>::all_kept(a.weight));
    const int64_t blocks = (tiles.count() + block - 1) / block;
    std::atomic<bool> finite{true};
    run_tile_blocks(
        blocks, panels, a.threads, [&] { return WideConvolution<T>(a, bias.get(), tiles, block); },
        [&](const WideConvolution<T>& convolution) {
            if (!convolution.finite()) finite = false;
        });
    return finite;
}

}  // namespace

bool wide_forward(const WideForward& a) {
    bool finite = true;
    in_precision_of(a.out.dtype, [&](auto zero) { finite = convolve_wide<decltype(zero)>(a); });
    return finite;
}

bool wide_input_gradient(const FeatureGradient& a) {
    if (!a.zeros && (a.out.height % 2 != 0 || a.out.width % 2 != 0)) return false;
    const int64_t first = a.zeros ? 0 : -1;  // with the cells beyond the border, which are folded into it
    return wide_forward({{JoinedMap{a.grad}},
                         turned(a.weight),
                         {},
                         true,
                         Activation::none,
                         first,
                         first,
                         a.out,
                         a.threads,
                         !a.zeros});
}

}  // namespace sharpmask::SHARPMASK_ISA
