#include "../parallel.h"
#include "bands.h"
#include "kernels.h"
#include "maps.h"
#include "planes.h"
#include "upsampled_rows.h"

namespace sharpmask::SHARPMASK_ISA {
namespace {

// The gradient row by row. Each cell gathers from the rows and columns, at most four of each, that it was
// spread to.
template <class T>
class RowGradient {
  public:
    explicit RowGradient(const UpsampleGradient& a)
        : a_(a),
          height_(a.out.height),
          width_(a.out.width),
          stride_(2 * round_up<T>(width_) + 2 * lanes<T>),
          row_(a.grad.channels * stride_),
          folded_(a.grad.channels, width_),
          out_(a.grad.channels * round_up<T>(width_)) {}

    void run(int64_t image, int64_t y) {
        if (image != image_) folded_.forget();
        image_ = image;
        const int64_t channels = a_.grad.channels, stride = round_up<T>(width_), bytes = (width_ + 7) / 8;
        // What of the rows beside it came from this row; beyond the border lies the border row again.
        const T* const before = row(std::max<int64_t>(2 * y - 1, 0));
        const T *const first = row(2 * y), *const second = row(2 * y + 1);
        const T* const after = row(std::min(2 * y + 2, 2 * height_ - 1));
        for (int64_t c = 0; c < channels; ++c) {
            const int64_t offset = c * folded_.plane + 1;
            const std::uint8_t* active =
                a_.active == nullptr ? nullptr : a_.active + ((image * channels + c) * height_ + y) * bytes;
            for (int64_t x = 0; x < width_; x += lanes<T>) {
                const auto at = [&](const T* cells) { return load(cells + offset + x); };
                const Vector<T> sum = a_.nearest
                                          ? at(first) + at(second)
                                          : three_to_one<T>(at(first) + at(second), at(before) + at(after));
                T* to = out_.get() + c * stride + x;
                if (active == nullptr) {
                    store(to, sum);
                    continue;
                }
                unsigned bits = active[x / 8];
                if (lanes<T> > 8 && x / 8 + 1 < bytes) bits |= active[x / 8 + 1] << 8;
                store(to, keep<T>(sum, bits >> x % 8));
            }
        }
        write_row(a_.out, image, y, channels, width_, out_.get(), stride);
    }

  private:
    const UpsampleGradient& a_;
    const int64_t height_, width_;
    int64_t image_ = -1;
    const int64_t stride_;  // from one channel to the next in row_
    Buffer<T> row_;
    Ring<T> folded_;  // rows of the gradient after summing over columns
    Buffer<T> out_;

    const T* row(int64_t y) {
        return folded_.row(y, a_.grad.channels, false, [&](T* to) {
            read_row(a_.grad, image_, y, 0, a_.grad.channels, 2 * width_, row_.get() + 1, stride_);
            for (int64_t c = 0; c < a_.grad.channels; ++c) {
                T* cells = row_.get() + c * stride_ + 1;
                cells[-1] = cells[0];
                cells[2 * width_] = cells[2 * width_ - 1];
                for (int64_t x = 0; x < width_; x += lanes<T>)
                    store(to + c * folded_.plane + x,
                          a_.nearest ? halves(cells + 2 * x) : spread(cells + 2 * x));
            }
        });
    }

    static Vector<T> halves(const T* cells) {
        const Pair<Vector<T>> pair = deinterleave<T>(load(cells), load(cells + lanes<T>));
        return pair.first + pair.second;
    }

    static Vector<T> spread(const T* cells) {
        const Pair<Vector<T>> left = deinterleave<T>(load(cells - 1), load(cells - 1 + lanes<T>));
        const Pair<Vector<T>> right = deinterleave<T>(load(cells + 1), load(cells + 1 + lanes<T>));
        return three_to_one<T>(left.second + right.first, left.first + right.second);
    }
};

// The same by pixels.
template <class T>
class PixelGradient {
  public:
    explicit PixelGradient(const UpsampleGradient& a)
        : a_(a), width_(a.out.width), folded_((2 * width_ + 2) * pixel_channels) {}

    void run(int64_t image, int64_t y, const PixelPart<T>& part) {
        with_pointer<T>(a_.grad.dtype, a_.grad.data,
                        [&](const auto* grad) { fold_rows(grad, image, y, part); });
        fold_columns(image, y, part);
    }

  private:
    const UpsampleGradient& a_;
    const int64_t width_;
    Buffer<T> folded_;  // the gradient after summing over rows, with a cell more on either side

    template <class From>
    void fold_rows(const From* grad, int64_t image, int64_t y, const PixelPart<T>& part) {
        const Strides& s = a_.grad.strides;
        const auto row = [&](int64_t i) {
            return grad + image * s.batch + std::clamp<int64_t>(i, 0, a_.grad.height - 1) * s.row +
                   part.begin;
        };
        const From *before = row(2 * y - 1), *first = row(2 * y), *second = row(2 * y + 1),
                   *after = row(2 * y + 2);
        T* to = folded_.get() + part.step;
        for (int64_t x = 0; x < 2 * width_; ++x, to += part.step) {
            for (int64_t c = 0; c < part.count; c += lanes<T>) {
                const auto in = [&](const From* from) {
                    return load_some<T>(from + x * s.col + c, part.count - c);
                };
                const Vector<T> near = in(first) + in(second);
                store(to + c, a_.nearest ? near : three_to_one<T>(near, in(before) + in(after)));
            }
        }
        std::copy_n(to - part.step, part.step, to);
        std::copy_n(folded_.get() + part.step, part.step, folded_.get());
    }

    void fold_columns(int64_t image, int64_t y, const PixelPart<T>& part) {
        const Strides& s = a_.out.strides;
        T* out = static_cast<T*>(const_cast<void*>(a_.out.data)) + image * s.batch + y * s.row + part.begin;
        for (int64_t c = 0; c < part.count; c += lanes<T>) {
            PixelBits<T> bits{};
            for (int64_t x = 0; x < width_; ++x) {
                if (x % 8 == 0) bits = read_bits(image, y, x, part.begin + c, part.count - c);
                const T* cell = folded_.get() + (2 * x + 1) * part.step + c;
                const auto in = [&](int64_t i) { return load(cell + i * part.step); };
                const Vector<T> near = in(0) + in(1);
                const Vector<T> sum = a_.nearest ? near : three_to_one<T>(near, in(-1) + in(2));
                const auto passed = (bits & (PixelBits<T>{} + (1 << x % 8))) != PixelBits<T>{};
                store_some(out + x * s.col + c, passed ? sum : Vector<T>{}, part.count - c);
            }
        }
    }

    // Of eight pixels; all of them where there was no ReLU.
    PixelBits<T> read_bits(int64_t image, int64_t y, int64_t x, int64_t channel, int64_t count) const {
        if (a_.active == nullptr) return PixelBits<T>{} + 255;
        const std::uint8_t* row = active_row(a_.active, a_.out, image, y, channel);
        const int64_t next = a_.out.height * ((width_ + 7) / 8);
        PixelBits<T> bits{};
        for (int64_t i = 0; i < std::min<int64_t>(lanes<T>, count); ++i) bits[i] = row[i * next + x / 8];
        return bits;
    }
};

template <class T>
void by_pixels(const UpsampleGradient& a, int threads) {
    const int64_t parts = pixel_parts(a.out.channels);
    parallel_for(
        a.out.batch * a.out.height * parts, threads, [&] { return PixelGradient<T>(a); },
        [&](PixelGradient<T>& gradient, int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
                const int64_t row = i / parts;
                gradient.run(row / a.out.height, row % a.out.height, {i % parts, a.out.channels});
            }
        });
}

template <class T>
void by_rows(const UpsampleGradient& a, int threads) {
    parallel_for(a.out.batch * a.out.height, threads, [&](int64_t begin, int64_t end) {
        RowGradient<T> gradient(a);
        for (int64_t i = begin; i < end; ++i) gradient.run(i / a.out.height, i % a.out.height);
    });
}

}  // namespace

void upsample_gradient(const UpsampleGradient& a) {
    // The upsampled gradient has four times the cells of the result.
    const int threads = threads_for(a.threads, a.out, 5 * a.grad.channels);
    in_precision_of(a.out.dtype, [&](auto zero) {
        using T = decltype(zero);
        const bool pixels =
            a.grad.strides.channel == 1 && a.out.strides.channel == 1 && bytes_of(a.out.dtype) == sizeof(T);
        if (pixels && a.grad.channels >= lanes<T>) return by_pixels<T>(a, threads);
        by_rows<T>(a, threads);
    });
}

}  // namespace sharpmask::SHARPMASK_ISA
