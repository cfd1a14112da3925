// The gradients of a feature of many channels, and of its convolution's parameters, as products of matrices.
//
// G[(tap, o), pixel] holds the gradient of the convolution's result, shifted by each tap. The gradients are
// dx = w^T G and dw = G x^T. See feature_forward.cpp for the forward.

#include <algorithm>
#include <memory>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "../parallel.h"
#include "bands.h"
#include "kernels.h"
#include "maps.h"
#include "parameters.h"
#include "pixels.h"
#include "planes.h"
#include "product.h"

namespace sharpmask::SHARPMASK_ISA {
namespace {

constexpr int64_t pixels_at_once = 480;               // of a band: its G stays in the second cache
constexpr int64_t channels_written = 8 * block_rows;  // at once: they fill lines of the cache
constexpr int64_t weight_gradient_tasks = 8;          // each has sums of its own, added up at the end

// Of the joined inputs, in a task of the weight's gradient: whole blocks, as two tasks share none.
template <class T>
constexpr int64_t task_channels = 256 / block_columns<T> * block_columns<T>;

// Some images if they are small, else bands of their rows. The cut depends on nothing but the size.
Bands cut(const TypedMap& map) {
    const int64_t height = map.height, width = map.width;
    const int64_t rows = std::max<int64_t>(1, std::min(pixels_at_once / std::max<int64_t>(width, 1), height));
    const int64_t images = std::max<int64_t>(1, pixels_at_once / std::max<int64_t>(height * width, 1));
    return {map.batch, height, rows, rows >= height ? images : 1};
}

// G[(tap, o)][pixel], of the pixels of a part: the sum of the skip's gradient over the cells to which the tap
// brings the pixel.
template <class T>
class TapGradients {
  public:
    TapGradients(const TypedMap& grad, bool zeros, const Bands& bands)
        : step(step_for<T>(bands.images * bands.rows * grad.width)),
          from_(grad),
          zeros_(zeros),
          outputs_(grad.channels),
          height_(bands.height),
          width_(grad.width),
          grad_(outputs_, bands.rows, width_),
          memory_(room_for_rows(9 * outputs_) * step) {}

    const int64_t step;  // from one tap and output to the next

    const T* get() const { return memory_.get(); }

    void shift(const Part& part) {
        top_ = part.top;
        for (int64_t i = 0; i < part.images; ++i) {
            for (int64_t y = part.top - 1; y <= part.bottom; ++y) read(part.image + i, y);
            for (int tap = 0; tap < 9; ++tap) {
                for (int64_t o = 0; o < outputs_; ++o) {
                    T* to = memory_.get() + (tap * outputs_ + o) * step + i * part.rows() * width_;
                    for (int64_t y = part.top; y < part.bottom; ++y, to += width_)
                        shift_row(o, y, tap / 3, tap % 3, to);
                }
            }
        }
    }

    // Adds up the skip's gradient, which is G's row of the tap in the middle.
    void add_sums(const Part& part, T* sums) const {
        for (int64_t o = 0; o < outputs_; ++o) {
            const T* cells = get() + (4 * outputs_ + o) * step;
            for (int64_t p = 0; p < part.images * part.rows() * width_; ++p) sums[o] += cells[p];
        }
    }

  private:
    const TypedMap& from_;
    const bool zeros_;
    const int64_t outputs_, height_, width_;
    int64_t top_ = 0;
    Planes<T> grad_;  // of one image, with rows and columns of zeros around
    Buffer<T> memory_;

    T* row(int64_t o, int64_t y) const { return grad_.row(o, y - top_); }

    void read(int64_t image, int64_t y) {
        const bool inside = y >= 0 && y < height_;
        if (inside) {
            read_row(from_, image, y, 0, outputs_, width_, row(0, y), grad_.plane);
        }
        for (int64_t o = 0; o < outputs_; ++o) {
            T* cells = row(o, y);
            if (!inside) std::fill_n(cells, width_, T{0});
            cells[-1] = cells[width_] = T{0};
        }
    }

    // For row y + 1 - ky of the skip, tap ky reads row y of the feature. Beyond the border, replicate padding
    // reads the row (column) at the border once more.
    void shift_row(int64_t o, int64_t y, int ky, int kx, T* to) const {
        const T* from = row(o, y + 1 - ky);
        for (int64_t x = 0; x < width_; x += lanes<T>) store(to + x, load(from + x + 1 - kx));
        if (zeros_) return;
        add_column(from, kx, to);
        if ((ky == 0 && y == 0) || (ky == 2 && y == height_ - 1)) {
            const T* border = row(o, y);
            for (int64_t x = 0; x < width_; ++x) to[x] += border[x + 1 - kx];
            add_column(border, kx, to);
        }
    }

    void add_column(const T* from, int kx, T* to) const {
        if (kx == 0) to[0] += from[0];
        if (kx == 2) to[width_ - 1] += from[width_ - 1];
    }
};

// w[(tap, o)][i]
template <class T>
Buffer<T> weights_by_tap(const TensorView& weight, int threads) {
    const int64_t outputs = weight.sizes[0], inputs = weight.sizes[1], step = room_for_rows(inputs);
    Buffer<T> weights(9 * outputs * step);
    const Dense<T> dense(weight);
    const T* from = dense.get();
    parallel_for(outputs, threads, [&](int64_t begin, int64_t end) {
        for (int64_t o = begin; o < end; ++o) {
            for (int64_t i = 0; i < inputs; ++i) {
                for (int tap = 0; tap < 9; ++tap)
                    weights.get()[(tap * outputs + o) * step + i] = from[(o * inputs + i) * 9 + tap];
            }
        }
    });
    return weights;
}

// Asks for large pages under memory that is about to be written. If the memory is fresh, mapping small pages
// takes about as long as computing the gradient itself.
void prefer_large_pages(const void* begin, int64_t bytes) {
#ifdef __linux__
    constexpr std::uintptr_t page = 1 << 21;
    const auto at = reinterpret_cast<std::uintptr_t>(begin);
    const std::uintptr_t first = (at + page - 1) / page * page, last = (at + bytes) / page * page;
    if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
    static_cast<void>(begin), static_cast<void>(bytes);
#endif
}

// The feature's gradient w^T G, band by band.
template <class T>
class BandGradient {
  public:
    // `weights` as weights_by_tap gives them
    BandGradient(const FeatureGradient& a, const T* weights, const Bands& bands)
        : a_(a),
          weights_(weights),
          inputs_(a.out.channels),
          grad_(a.grad, a.zeros, bands),
          result_(channels_written * grad_.step) {}

    void run(const Part& part) {
        const Pixels pixels{part, a_.out.width};
        grad_.shift(part);
        for (int64_t i = 0; i < inputs_; i += channels_written) {
            const int64_t channels = std::min(channels_written, inputs_ - i);
            Ahead nothing;
            for (int64_t p = 0; p < pixels.count(); p += block_columns<T>) {
                multiply(channels, 9 * a_.grad.channels, weights_ + i, room_for_rows(inputs_),
                         grad_.get() + p, grad_.step, true, result_.get() + p, grad_.step, nothing);
            }
            write(pixels, i, channels);
        }
    }

  private:
    const FeatureGradient& a_;
    const T* weights_;
    const int64_t inputs_;
    TapGradients<T> grad_;
    Buffer<T> result_;

    void write(const Pixels& pixels, int64_t channel, int64_t channels) const {
        const TypedMap& out = a_.out;
        pixels.stretches(out, channel, 0, pixels.count(), [&](int64_t offset, int64_t count, int64_t pixel) {
            with_pointer<T>(out.dtype, const_cast<void*>(out.data), [&](auto* to) {
                write_typed(to + offset, out.strides, channels, count, result_.get() + pixel, grad_.step);
            });
        });
    }
};

template <class T>
void input_gradient_of_feature(const FeatureGradient& a, int threads) {
    const TypedMap& out = a.out;
    const Buffer<T> weights = weights_by_tap<T>(a.weight, threads);
    const Bands bands = cut(out);
    parallel_for(bands.count(), threads, [&](int64_t begin, int64_t end) {
        BandGradient<T> gradient(a, weights.get(), bands);
        for (int64_t band = begin; band < end; ++band) gradient.run(bands[band]);
    });
}

// The weight's gradient G x^T, of some channels of the joined inputs.
template <class T>
class WeightSums {
  public:
    WeightSums(const WeightGradient& a, const Bands& bands)
        : a_(a),
          bands_(bands),
          width_(a.grad.width),
          taps_(9 * a.grad.channels),
          room_(room_for_rows(taps_)),
          grad_(a.grad, a.zeros, bands),
          left_(bands.images * bands.rows * a.grad.width * room_),
          right_(depth_at_once * block_columns<T>) {}

    // Over the bands [first, last): sums[(tap, o) * step + i], and the sums of grad where bias is not null.
    void run(int64_t first, int64_t last, int64_t begin, int64_t end, T* sums, int64_t step, T* bias) {
        for (int64_t band = first; band < last; ++band) {
            const Pixels pixels{bands_[band], width_};
            grad_.shift(pixels.part);
            if (bias != nullptr) grad_.add_sums(pixels.part, bias);
            copy_matrix(grad_.get(), 1, grad_.step, pixels.count(), taps_, left_.get(), room_);
            for (int64_t p = 0; p < pixels.count(); p += depth_at_once) {
                const int64_t depth = std::min(depth_at_once, pixels.count() - p);
                Ahead next = p + depth < pixels.count() ? fetch({pixels.part, width_}, begin, end, p + depth)
                             : band + 1 < last          ? fetch({bands_[band + 1], width_}, begin, end, 0)
                                                        : Ahead();
                for (int64_t i = begin; i < end; i += block_columns<T>) {
                    read(pixels, i, std::min(i + block_columns<T>, end), p, p + depth);
                    multiply(taps_, depth, left_.get() + p * room_, room_, right_.get(), block_columns<T>,
                             band == first && p == 0, sums + i, step, next);
                }
            }
        }
    }

  private:
    const WeightGradient& a_;
    const Bands& bands_;
    const int64_t width_, taps_, room_;
    TapGradients<T> grad_;
    Buffer<T> left_, right_;  // G and x, transposed

    Ahead fetch(const Pixels& pixels, int64_t begin, int64_t end, int64_t p) const {
        if (a_.inputs.size() > 1) return {};
        return ahead<T>(a_.inputs[0], pixels, begin, end - begin, p, depth_at_once);
    }

    // Pixels [p, last) of channels [begin, end) of the joined inputs.
    void read(const Pixels& pixels, int64_t begin, int64_t end, int64_t p, int64_t last) const {
        int64_t first = 0;  // of the map among the joined
        for (const TypedMap& m : a_.inputs) {
            const int64_t from = std::max(begin, first), to = std::min(end, first + m.channels);
            if (from < to) {
                pixels.stretches(m, from - first, p, last, [&](int64_t offset, int64_t count, int64_t pixel) {
                    with_pointer<T>(m.dtype, m.data, [&](const auto* cells) {
                        copy_matrix(cells + offset, m.strides.col, m.strides.channel, count, to - from,
                                    right_.get() + (pixel - p) * block_columns<T> + from - begin,
                                    block_columns<T>);
                    });
                });
            }
            first += m.channels;
        }
    }
};

// How the weight's gradient is cut into tasks: each sums over a share of the bands for a block of the
// channels. The cut depends on nothing but the size.
struct WeightTasks {
    int64_t blocks, shares;

    template <class T>
    static WeightTasks of(int64_t inputs, const Bands& bands) {
        const int64_t blocks = std::max<int64_t>(1, (inputs + task_channels<T> - 1) / task_channels<T>);
        return {blocks, std::max<int64_t>(1, std::min(weight_gradient_tasks / blocks, bands.count()))};
    }
};

// The sums of all tasks: of share s, weights[s * size + (tap * outputs + o) * step + i].
template <class T>
struct ShareSums {
    int64_t shares, outputs, step, size;
    std::unique_ptr<T[]> weights;  // each is written before it is added to
    Buffer<T> bias;

    ShareSums(int64_t shares, int64_t outputs, int64_t inputs)
        : shares(shares),
          outputs(outputs),
          step(room_for_columns<T>(inputs) + lanes<T>),
          size(room_for_rows(9 * outputs) * step),
          weights(new T[shares * size]),
          bias(shares * outputs) {}

    // The shares are summed in their order.
    void total_bias(T* to) const {
        for (int64_t o = 0; o < outputs; ++o) {
            to[o] = 0;
            for (int64_t share = 0; share < shares; ++share) to[o] += bias.get()[share * outputs + o];
        }
    }

    void total_weights(int64_t o, int64_t inputs, T* to) const {
        for (int tap = 0; tap < 9; ++tap) {
            for (int64_t i = 0; i < inputs; ++i) {
                T total = 0;
                for (int64_t share = 0; share < shares; ++share)
                    total += weights[share * size + (tap * outputs + o) * step + i];
                to[(o * inputs + i) * 9 + tap] = total;
            }
        }
    }
};

template <class T>
void parameter_gradients(const WeightGradient& a) {
    T *weight = static_cast<T*>(a.weight), *bias = static_cast<T*>(a.bias);
    const int64_t inputs = joined_channels(a.inputs), outputs = a.grad.channels;
    const int64_t used = weight == nullptr ? 0 : inputs;
    const Bands bands = cut(a.grad);
    const WeightTasks tasks = WeightTasks::of<T>(used, bands);
    const ShareSums<T> sums(tasks.shares, outputs, inputs);
    if (bands.count() == 0) std::fill_n(sums.weights.get(), sums.size, T{0});
    const int threads = threads_for(a.threads, a.grad, inputs + outputs);
    parallel_for(tasks.shares * tasks.blocks, threads, [&](int64_t first, int64_t last) {
        WeightSums<T> task(a, bands);
        for (int64_t i = first; i < last; ++i) {
            const int64_t share = i / tasks.blocks, begin = i % tasks.blocks * task_channels<T>;
            task.run(share * bands.count() / tasks.shares, (share + 1) * bands.count() / tasks.shares, begin,
                     std::min(begin + task_channels<T>, used), sums.weights.get() + share * sums.size,
                     sums.step, begin == 0 ? sums.bias.get() + share * outputs : nullptr);
        }
    });
    if (bias != nullptr) sums.total_bias(bias);
    if (weight == nullptr) return;
    parallel_for(outputs, threads, [&](int64_t begin, int64_t end) {
        for (int64_t o = begin; o < end; ++o) sums.total_weights(o, inputs, weight);
    });
}

}  // namespace

void feature_gradient(const FeatureGradient& a) {
    const TypedMap& out = a.out;
    prefer_large_pages(out.data, out.batch * out.channels * out.height * out.width * bytes_of(out.dtype));
    const int threads = threads_for(a.threads, out, out.channels);
    const FeatureGradient wide{a.grad, a.weight, a.zeros, out, threads};
    if (worth_tiles(out.channels, a.grad.channels) && wide_input_gradient(wide)) return;
    in_precision_of(out.dtype, [&](auto zero) { input_gradient_of_feature<decltype(zero)>(a, threads); });
}

void feature_weight_gradient(const WeightGradient& a) {
    const TypedMap& x = a.inputs[0];
    if (a.inputs.size() == 1 && a.weight != nullptr && worth_tiles(x.channels, a.grad.channels)) {
        const int threads = threads_for(a.threads, a.grad, x.channels + a.grad.channels);
        const int64_t inputs = x.channels, outputs = a.grad.channels;
        const DType dtype = x.dtype == DType::float64 ? DType::float64 : DType::float32;
        const TensorView weight{a.weight, dtype, 4, {outputs, inputs, 3, 3}, {inputs * 9, 9, 3, 1}};
        return wide_gradient({a.grad, JoinedMap{x}, a.zeros, 0, 0, weight, a.bias, threads});
    }
    in_precision_of(a.grad.dtype, [&](auto zero) { parameter_gradients<decltype(zero)>(a); });
}

}  // namespace sharpmask::SHARPMASK_ISA
