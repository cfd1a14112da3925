#include "../parallel.h"
#include "bands.h"
#include "kernels.h"
#include "maps.h"
#include "planes.h"

namespace sharpmask::SHARPMASK_ISA {
namespace {

constexpr int64_t rows_summed = 8;  // whose gradient stays in a core's first cache

// O outputs, one input, R rows of taps: sums[o][tap] += grad[o] * input shifted by the tap, lane by lane.
template <class T, int O, int R>
void correlate(const T* grad, int64_t grad_plane, int64_t grad_stride, const T* input, int64_t input_stride,
               int64_t rows, int64_t width, T* sums, int64_t sums_step) {
    Vector<T> total[O][R * 3], lane;
    for (int i = 0; i < lanes<T>; ++i) lane[i] = static_cast<T>(i);
#pragma GCC unroll 16
    for (int o = 0; o < O; ++o) {
#pragma GCC unroll 9
        for (int tap = 0; tap < R * 3; ++tap) total[o][tap] = load(sums + o * sums_step + tap * lanes<T>);
    }
    const auto add = [&](int64_t y, int64_t x, auto whole) {
        Vector<T> cells[R * 3];
#pragma GCC unroll 9
        for (int tap = 0; tap < R * 3; ++tap) {
            cells[tap] = load(input + (y + tap / 3) * input_stride + x + tap % 3);
            // Beyond the row the gradient is 0; the input must be finite there.
            if constexpr (!whole)
                cells[tap] = lane < splat(static_cast<T>(width - x)) ? cells[tap] : Vector<T>{};
        }
#pragma GCC unroll 16
        for (int o = 0; o < O; ++o) {
            const Vector<T> g = load(grad + o * grad_plane + y * grad_stride + x);
#pragma GCC unroll 9
            for (int tap = 0; tap < R * 3; ++tap) total[o][tap] = fma(g, cells[tap], total[o][tap]);
        }
    };
    const int64_t whole = width / lanes<T> * lanes<T>;
    for (int64_t y = 0; y < rows; ++y) {
        for (int64_t x = 0; x < whole; x += lanes<T>) add(y, x, std::true_type());
        if (whole < width) add(y, whole, std::false_type());
    }
#pragma GCC unroll 16
    for (int o = 0; o < O; ++o) {
#pragma GCC unroll 9
        for (int tap = 0; tap < R * 3; ++tap) store(sums + o * sums_step + tap * lanes<T>, total[o][tap]);
    }
}

// Lanes summed in their order.
template <class T>
T sum_of_lanes(const T* lane) {
    T sum = 0;
    for (int i = 0; i < lanes<T>; ++i) sum += lane[i];
    return sum;
}

// The gradients of one image after another, each in `weight` and `bias`.
template <class T>
class ImageGradient {
  public:
    explicit ImageGradient(const WeightGradient& a)
        : a_(a),
          source_{a.inputs, a.zeros},
          height_(a.grad.height),
          width_(a.grad.width),
          outputs_(a.grad.channels),
          inputs_(joined_channels(a.inputs)),
          bands_(bands_of_rows(1, height_, rows_summed)),
          channels_(channels_in_cache<T>(inputs_, bands_.rows, width_)),
          x_(channels_, bands_.rows, width_),
          g_(outputs_, height_, width_),
          sums_(outputs_ * channels_ * 9 * lanes<T>) {}

    void run(int64_t image, T* weight, T* bias) {
        for (int64_t y = 0; y < height_; ++y) {
            // From the left border cell on, where vectors are aligned.
            read_row(a_.grad, image, y, 0, outputs_, width_, g_.row(0, y) - 1, g_.plane);
        }
        add_to_bias(bias);
        if (a_.weight == nullptr) return;
        // The sums of a block of the input channels stay in the second cache.
        for (int64_t begin = 0; begin < inputs_; begin += channels_) {
            const int64_t count = std::min(channels_, inputs_ - begin);
            std::fill_n(sums_.get(), outputs_ * channels_ * 9 * lanes<T>, T{0});
            for (int64_t band = 0; band < bands_.count(); ++band) {
                const Part part = bands_[band];
                source_.read(image, begin, begin + count, part.top, part.bottom, x_);
                for (int64_t i = 0; i < count; ++i) add_input(i, part.top, part.bottom);
            }
            for (int64_t o = 0; o < outputs_; ++o) {
                for (int64_t i = 0; i < count * 9; ++i) {
                    weight[(o * inputs_ + begin) * 9 + i] =
                        sum_of_lanes(sums_.get() + (o * channels_ * 9 + i) * lanes<T>);
                }
            }
        }
    }

  private:
    const WeightGradient& a_;
    JoinedMaps<T> source_;
    const int64_t height_, width_, outputs_, inputs_;
    const Bands bands_;
    const int64_t channels_;  // at once
    Planes<T> x_, g_;
    Buffer<T> sums_;

    void add_to_bias(T* bias) const {
        for (int64_t o = 0; o < outputs_; ++o) {
            for (int64_t y = 0; y < height_; ++y) {
                Vector<T> sum{};
                const T* cells = g_.row(o, y) - 1;  // zeros beyond the row
                for (int64_t x = 0; x < width_; x += lanes<T>) sum += load(cells + x);
                T lane[lanes<T>];
                store(lane, sum);
                bias[o] += sum_of_lanes(lane);
            }
        }
    }

    // All pairs of the block's input i with an output, in some rows.
    void add_input(int64_t i, int64_t top, int64_t bottom) const {
        const T* cells = x_.row(i, -1) - 1;
        int64_t o = 0;
        const auto run = [&](auto outputs_at_once, auto tap_rows) {
            constexpr int O = outputs_at_once, R = tap_rows;
            for (; o + O <= outputs_; o += O) {
                for (int ky = 0; ky < 3; ky += R) {
                    correlate<T, O, R>(g_.row(o, top) - 1, g_.plane, g_.stride, cells + ky * x_.stride,
                                       x_.stride, bottom - top, width_,
                                       sums_.get() + ((o * channels_ + i) * 9 + ky * 3) * lanes<T>,
                                       channels_ * 9 * lanes<T>);
                }
            }
        };
        // 24, 12 or 18 sums where there are 32 registers, 12 or 9 where there are 16.
        constexpr bool many = vector_registers == 32;
        if constexpr (many) run(std::integral_constant<int, 8>(), std::integral_constant<int, 1>());
        run(std::integral_constant<int, 4>(), std::integral_constant<int, 1>());
        if constexpr (many) run(std::integral_constant<int, 2>(), std::integral_constant<int, 3>());
        run(std::integral_constant<int, 1>(), std::integral_constant<int, 3>());
    }
};

// Each image's gradient is computed by one thread. The images' gradients are then summed in their order.
template <class T>
void direct_weight_gradient(const WeightGradient& a) {
    const int64_t outputs = a.grad.channels, inputs = joined_channels(a.inputs);
    const int64_t weights = outputs * inputs * 9, each = weights + outputs;
    const Buffer<T> images(a.grad.batch * each);
    const int threads = threads_for(a.threads, a.grad, inputs + outputs);
    parallel_for(a.grad.batch, threads, [&](int64_t begin, int64_t end) {
        ImageGradient<T> gradient(a);
        for (int64_t i = begin; i < end; ++i)
            gradient.run(i, images.get() + i * each, images.get() + i * each + weights);
    });
    const auto sum = [&](void* to, int64_t first, int64_t count) {
        if (to == nullptr) return;
        T* total = static_cast<T*>(to);
        std::fill_n(total, count, T{0});
        for (int64_t image = 0; image < a.grad.batch; ++image) {
            for (int64_t i = 0; i < count; ++i) total[i] += images.get()[image * each + first + i];
        }
    };
    sum(a.weight, 0, weights);
    sum(a.bias, weights, outputs);
}

}  // namespace

void weight_gradient(const WeightGradient& a) {
    // Products of matrices pay where their blocks are filled.
    constexpr int64_t inputs_for_products = 32;
    if (joined_channels(a.inputs) >= inputs_for_products) return feature_weight_gradient(a);
    in_precision_of(a.grad.dtype, [&](auto zero) { direct_weight_gradient<decltype(zero)>(a); });
}

}  // namespace sharpmask::SHARPMASK_ISA
