#include "../parallel.h"
#include "bands.h"
#include "convolve.h"
#include "kernels.h"
#include "maps.h"
#include "parameters.h"

namespace sharpmask::SHARPMASK_ISA {
namespace {

constexpr int64_t rows_of_band = 32;  // as in convolve.cpp

// For replicate padding. The convolution of the gradient is a cell larger on every side than the input, and
// what the cells of the padding receive is added to the border cells that they are copies of.
template <class T>
class ReplicateGradient {
  public:
    ReplicateGradient(const InputGradient& a, const Conv3x3<T>& conv)
        : a_(a),
          conv_(conv),
          height_(a.out.height),
          width_(a.out.width),
          ring_(conv.inputs, conv.width),
          length_(conv.row_length()),
          result_(conv.rows * length_),
          sums_(conv.rows * length_),
          tile_(conv.tile_size()),
          relu_(conv.outputs * length_) {}

    void run(const Part& part) {
        ring_.forget();
        for (int64_t y = part.top; y < part.bottom; ++y) {
            convolve(part.image, y, sums_.get());
            if (y == 0) add(part.image, -1);
            if (y == height_ - 1) add(part.image, height_);
            for (int64_t o = 0; o < conv_.outputs; ++o) {
                T* cells = sums_.get() + o * length_ + 1;
                cells[0] += cells[-1];
                cells[width_ - 1] += cells[width_];
            }
            if (a_.relu.data) pass_relu(part.image, y);
            write_row(a_.out, part.image, y, conv_.outputs, width_, sums_.get() + 1, length_);
        }
    }

  private:
    const InputGradient& a_;
    const Conv3x3<T>& conv_;
    const int64_t height_, width_;
    Ring<T> ring_;  // the gradient, within a border of zeros
    const int64_t length_;
    Buffer<T> result_, sums_, tile_, relu_;

    const T* row(int64_t image, int64_t y) {
        return ring_.row(y, conv_.inputs, false, [&](T* to) {
            const bool inside = y >= 0 && y < height_;
            for (int64_t c = 0; c < conv_.inputs; ++c) {
                T* cells = to + c * ring_.plane;
                if (!inside) std::fill_n(cells, width_ + 2, T{0});
                cells[0] = cells[width_ + 1] = T{0};
            }
            if (inside) {
                read_row(a_.grad, image, y, 0, conv_.inputs, width_, to + 1, ring_.plane);
            }
        });
    }

    void pass_relu(int64_t image, int64_t y) {
        read_row(a_.relu, image, y, 0, conv_.outputs, width_, relu_.get(), length_);
        for (int64_t o = 0; o < conv_.outputs; ++o) {
            T* cells = sums_.get() + o * length_ + 1;
            const T* values = relu_.get() + o * length_;
            for (int64_t x = 0; x < width_; ++x) cells[x] = values[x] <= 0 ? T{0} : cells[x];
        }
    }

    // Row y of the full convolution.
    void convolve(int64_t image, int64_t y, T* to) {
        const T* const from[3] = {row(image, y - 1), row(image, y), row(image, y + 1)};
        conv_.row(from, ring_.plane, y + 1, to, tile_.get());
    }

    void add(int64_t image, int64_t y) {
        convolve(image, y, result_.get());
        for (int64_t i = 0; i < conv_.rows * length_; ++i) sums_.get()[i] += result_.get()[i];
    }
};

template <class T>
void zeros_gradient(const InputGradient& a, const Dense<T>& weight) {
    const Conv3x3<T> conv(weight.get(), nullptr, a.grad.channels, a.out.channels, a.out.height, a.out.width);
    convolve({{a.grad}, {}, a.relu, true, false, false, a.out, nullptr, a.threads}, conv);
}

template <class T>
void replicate_gradient(const InputGradient& a, const Dense<T>& weight) {
    const Conv3x3<T> conv(weight.get(), nullptr, a.grad.channels, a.out.channels, a.out.height + 2,
                          a.out.width + 2);
    const Bands bands = bands_of_rows(a.out.batch, a.out.height, rows_of_band);
    const int threads = threads_for(a.threads, a.out, conv.inputs + conv.outputs);
    parallel_for(bands.count(), threads, [&](int64_t begin, int64_t end) {
        ReplicateGradient<T> gradient(a, conv);
        for (int64_t band = begin; band < end; ++band) gradient.run(bands[band]);
    });
}

}  // namespace

void input_gradient(const InputGradient& a) {
    in_precision_of(a.out.dtype, [&](auto zero) {
        using T = decltype(zero);
        const Dense<T> weight(turned(a.weight));
        a.zeros ? zeros_gradient<T>(a, weight) : replicate_gradient<T>(a, weight);
    });
}

}  // namespace sharpmask::SHARPMASK_ISA
