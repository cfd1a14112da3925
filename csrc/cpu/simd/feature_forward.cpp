// The convolution of a feature of many channels as a product of matrices.
//
// The products of every pixel with the weights of every tap, P[(tap, o), pixel] = sum_i w[o, i, tap] x[i,
// pixel], do not depend on neighbours or the border: the feature is read once, as it lies in memory. The
// result is the sum of nine rows of P, each shifted by its tap.

#include <algorithm>

#include "../parallel.h"
#include "bands.h"
#include "kernels.h"
#include "maps.h"
#include "parameters.h"
#include "pixels.h"
#include "product.h"

namespace sharpmask::SHARPMASK_ISA {
namespace {

constexpr int64_t outputs_at_once = 32;
constexpr int64_t bytes_at_once = 512 << 10;  // of P, so that it stays in the second cache
// More rows of products than this read a block's columns so often that copying them side by side pays.
constexpr int64_t rows_without_copy = 12 * block_rows;
// Channels that are a multiple of this apart compete for the same lines of the first cache.
constexpr int64_t page = 4096;

// The weights of up to `outputs_at_once` outputs: w[i][(tap, o)].
template <class T>
struct Outputs {
    int64_t begin, count, step;
    Buffer<T> weights;

    // From a dense weight (outputs, inputs, 3, 3).
    Outputs(const T* weight, int64_t outputs, int64_t inputs, int64_t begin, int threads)
        : begin(begin),
          count(std::min(outputs - begin, outputs_at_once)),
          step(room_for_rows(9 * count)),
          weights(inputs * step) {
        // In memory, the taps of an input follow those of the one before. All together are one matrix to be
        // transposed, unless the rows are filled up.
        const T* from = weight + begin * inputs * 9;
        const int64_t joined = step == 9 * count ? inputs : 1;
        parallel_for(inputs, threads, [&](int64_t first, int64_t end) {
            for (int64_t i = first; i < end; i += joined) {
                copy_matrix(from + i * 9, 1, inputs * 9, std::min(joined, end - i) * 9, count,
                            weights.get() + i * step, count);
            }
        });
    }
};

template <class T>
class FeatureConvolution {
  public:
    // `bias`: null for zeros
    FeatureConvolution(const FeatureForward& a, const T* bias)
        : a_(a),
          bias_(bias),
          width_(a.feature.width),
          panel_(depth_at_once * block_columns<T>),
          out_(outputs_at_once * round_up<T>(width_)) {}

    // A part of the skip.
    void run(const Outputs<T>& outputs, const Part& part) {
        const Part read{part.image, part.images, std::max<int64_t>(part.top - 1, 0),
                        std::min(part.bottom + 1, a_.feature.height)};
        multiply_taps(outputs, {read, width_});
        const TypedMap out = from_channel(a_.out, outputs.begin);
        const int64_t stride = round_up<T>(width_);
        for (int64_t i = 0; i < part.images; ++i) {
            for (int64_t y = part.top; y < part.bottom; ++y) {
                for (int64_t o = 0; o < outputs.count; ++o)
                    add_taps(outputs, read, i, y, o, out_.get() + o * stride);
                write_row(out, part.image + i, y, outputs.count, width_, out_.get(), stride);
            }
        }
    }

  private:
    const FeatureForward& a_;
    const T* bias_;
    const int64_t width_;
    Buffer<T> panel_, products_, out_;
    int64_t step_ = 0, room_ = 0;

    // P; the cell before it may be read.
    T* products() const { return products_.get() + lanes<T>; }

    void multiply_taps(const Outputs<T>& outputs, const Pixels& all) {
        const int64_t pixels = all.count();
        step_ = step_for<T>(pixels);
        if (outputs.step * step_ > room_) {
            room_ = outputs.step * step_;
            products_ = Buffer<T>(lanes<T> + room_);
        }
        const TypedMap& x = a_.feature;
        for (int64_t i = 0; i < x.channels; i += depth_at_once) {
            const int64_t depth = std::min(depth_at_once, x.channels - i);
            for (int64_t p = 0; p < pixels; p += block_columns<T>) {
                const int64_t end = std::min(p + block_columns<T>, pixels);
                const Columns columns = read(all, i, depth, p, end, outputs.step);
                Ahead next = end < pixels
                                 ? ahead<T>(x, all, i, depth_at_once, end, block_columns<T>)
                                 : ahead<T>(x, all, i + depth_at_once, depth_at_once, 0, block_columns<T>);
                multiply(outputs.step, depth, outputs.weights.get() + i * outputs.step, outputs.step,
                         columns.data, columns.step, i == 0, products() + p, step_, next);
            }
        }
    }

    struct Columns {  // of a block, `step` from one channel to the next
        const T* data;
        int64_t step;
    };

    // Pixels [p, end) of some channels for products with `rows` rows. They are copied unless they are a whole
    // block side by side; also where the copy is read so often that it pays, and where the channels would
    // compete for the same lines of the cache.
    Columns read(const Pixels& all, int64_t channel, int64_t channels, int64_t p, int64_t end, int64_t rows) {
        const TypedMap& x = a_.feature;
        const Strides& s = x.strides;
        const bool in_place = bytes_of(x.dtype) == sizeof(T) && s.col == 1 && rows <= rows_without_copy &&
                              s.channel * sizeof(T) % page != 0;
        Columns columns{panel_.get(), block_columns<T>};
        all.stretches(x, channel, p, end, [&](int64_t offset, int64_t count, int64_t pixel) {
            if (in_place && count == block_columns<T>) {
                columns = {static_cast<const T*>(x.data) + offset, s.channel};
                return;
            }
            with_pointer<T>(x.dtype, x.data, [&](const auto* from) {
                copy_matrix(from + offset, s.channel, s.col, channels, count, panel_.get() + (pixel - p),
                            block_columns<T>);
            });
        });
        return columns;
    }

    // A row of an output: bias and the nine taps' products, after ReLU.
    void add_taps(const Outputs<T>& outputs, const Part& part, int64_t image, int64_t y, int64_t o,
                  T* out) const {
        const int64_t width = width_, next = outputs.count * step_;  // from a tap to the next
        const T* rows[3];                                            // of the products with the left taps
        int count = 0;
        for (int ky = 0; ky < 3; ++ky) {
            const int64_t from = y + ky - 1;
            if (a_.zeros && (from < 0 || from >= a_.feature.height)) continue;
            const int64_t row = std::clamp<int64_t>(from, 0, a_.feature.height - 1) - part.top;
            rows[count++] =
                products() + (ky * 3 * outputs.count + o) * step_ + (image * part.rows() + row) * width;
        }
        // The contribution of a side tap at the border, where it would read a neighbouring row.
        const auto border = [&](int kx, int64_t x) {
            T sum = 0;
            for (int i = 0; i < count && !a_.zeros; ++i) sum += rows[i][kx * next + x];
            return sum;
        };
        const Vector<T> bias = splat(bias_ == nullptr ? T{0} : bias_[outputs.begin + o]);
        for (int64_t x = 0; x < width; x += lanes<T>) {
            Vector<T> left{}, middle = bias, right{};
            for (int i = 0; i < count; ++i) {
                left += load(rows[i] + x - 1);
                middle += load(rows[i] + next + x);
                right += load(rows[i] + 2 * next + x + 1);
            }
            if (x == 0) left[0] = border(0, 0);
            if (x + lanes<T> >= width) right[width - 1 - x] = border(2, width - 1);
            store(out + x, relu<Vector<T>>(left + middle + right));
        }
    }
};

// Whole images if they are small, else bands of their rows; enough of them for all threads. No sum depends on
// the cut.
Bands cut(const TypedMap& feature, int64_t pixels, int threads) {
    const int64_t height = feature.height, width = feature.width;
    const int64_t share = (feature.batch * height + threads - 1) / threads;  // rows of a thread
    const int64_t rows = std::clamp<int64_t>(pixels / width - 2, 1, std::min(height, share));
    const int64_t images = std::max<int64_t>(1, std::min(pixels / (height * width), share / height));
    return {feature.batch, height, rows, rows < height ? 1 : images};
}

template <class T>
void convolve_feature(const FeatureForward& a) {
    if (a.feature.batch * a.feature.height * a.feature.width == 0) return;
    const Dense<T> weight(a.weight);
    const Dense<T> bias = dense_or_null<T>(a.bias);
    const int64_t outputs_in_all = a.weight.sizes[0], inputs = a.weight.sizes[1];
    const int threads = threads_for(a.threads, a.feature, inputs);
    for (int64_t begin = 0; begin < outputs_in_all; begin += outputs_at_once) {
        const Outputs<T> outputs(weight.get(), outputs_in_all, inputs, begin, threads);
        const int64_t pixels = bytes_at_once / (outputs.step * static_cast<int64_t>(sizeof(T)));
        const Bands bands = cut(a.feature, pixels, threads);
        parallel_for(bands.count(), threads, [&](int64_t first, int64_t end) {
            FeatureConvolution<T> convolution(a, bias.get());
            for (int64_t band = first; band < end; ++band) convolution.run(outputs, bands[band]);
        });
    }
}

}  // namespace

void feature_forward(const FeatureForward& a) {
    const int threads = threads_for(a.threads, a.feature, a.feature.channels);
    const WideForward wide{
        {JoinedMap{a.feature}}, a.weight, a.bias, a.zeros, Activation::relu, 0, 0, a.out, threads};
    if (worth_tiles(a.feature.channels, a.out.channels) && wide_forward(wide)) return;
    in_precision_of(a.out.dtype, [&](auto zero) { convolve_feature<decltype(zero)>(a); });
}

}  // namespace sharpmask::SHARPMASK_ISA
