// The gradient of a map that is upsampled before a wide convolution: one product over outputs and taps.

#include "kernels.h"
#include "tile_gradients.h"

namespace sharpmask::SHARPMASK_ISA {
namespace {

// The weight as its input's gradient reads it: outputs and inputs have changed places.
inline TensorView swapped(TensorView weight) {
    std::swap(weight.sizes[0], weight.sizes[1]);
    std::swap(weight.strides[0], weight.strides[1]);
    return weight;
}

template <class T>
class UpsampledInputGradient {
  public:
    UpsampledInputGradient(const UpsampledGradient& a, const Tiles& tiles, int64_t block)
        : a_(a),
          tiles_(tiles),
          outputs_(a.grad.channels),
          block_(block),
          step_(block * inputs_at_once),
          gradients_(a.grad, tiles, a.upsampling, a.zeros),
          weight_(swapped(a.weight)),
          grad_(Buffer<T>::unset((outputs_ + inputs_at_once - 1) / inputs_at_once * 9 * step_)),
          sums_(block * panel<T>),
          planes_(Buffer<T>::unset(block * panel<T>)) {}

    void run(int64_t block, int64_t first_panel, int64_t last_panel) {
        const int64_t begin = block * block_, end = std::min(begin + block_, tiles_.count());
        if (block != read_) {
            each_chunk([&](int64_t output, int64_t outputs, T* to) {
                gradients_.read(begin, end, output, outputs, {step_, inputs_at_once, panel<T>}, to);
            });
        }
        read_ = block;
        for (int64_t p = first_panel; p < last_panel; ++p) {
            const TypedMap part = from_channel(a_.out, p * panel<T>);
            multiply(end - begin, weight_.of(p), part.channels);
            tiles_.stretches(begin, end, block_, [&](const Stretch& s) {
                write_cells(part, s.image, s.row, s.col, std::min(part.channels, panel<T>), s.count,
                            sums_.get() + s.place * panel<T>, panel<T>, planes_.get(), block_);
            });
        }
    }

  private:
    const UpsampledGradient& a_;
    const Tiles& tiles_;
    const int64_t outputs_, block_, step_;  // step_: from one tap to the next
    TileGradients<T> gradients_;
    PanelWeights<T, true> weight_;
    const Buffer<T> grad_;  // [chunk of outputs][tap][tile][output]
    const Buffer<T> sums_, planes_;
    int64_t read_ = -1;

    template <class Body>
    void each_chunk(const Body& body) const {
        for (int64_t o = 0; o < outputs_; o += inputs_at_once)
            body(o, std::min(inputs_at_once, outputs_ - o), grad_.get() + o / inputs_at_once * 9 * step_);
    }

    void multiply(int64_t tiles, const T* weight, int64_t channels) {
        each_chunk([&](int64_t output, int64_t outputs, const T* from) {
            for (int tap = 0; tap < 9; ++tap) {
                add_products<T, inputs_at_once, 1>(tiles, outputs, from + tap * step_,
                                                   weight + tap * weight_.step + output * panel<T>, channels,
                                                   output == 0 && tap == 0, sums_.get());
            }
        });
    }
};

template <class T>
void upsampled_input_gradient(const UpsampledGradient& a) {
    const Tiles tiles{a.grad.batch, a.grad.height, a.grad.width};
    const int64_t block = block_of_tiles(tiles.count(), PanelWeights<T, true>::all_kept(swapped(a.weight)));
    const int64_t panels = panels_of<T>(a.out.channels), blocks = (tiles.count() + block - 1) / block;
    run_tile_blocks(
        blocks, panels, a.threads, [&] { return UpsampledInputGradient<T>(a, tiles, block); },
        [](const UpsampledInputGradient<T>&) {});
}

}  // namespace

void upsampled_gradient(const UpsampledGradient& a) {
    in_precision_of(a.grad.dtype, [&](auto zero) { upsampled_input_gradient<decltype(zero)>(a); });
}

}  // namespace sharpmask::SHARPMASK_ISA
