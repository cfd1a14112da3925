// What follows a convolution that another kernel has computed.

#include <array>

#include "../parallel.h"
#include "bands.h"
#include "kernels.h"
#include "maps.h"
#include "planes.h"
#include "upsampled_rows.h"

namespace sharpmask::SHARPMASK_ISA {
namespace {

constexpr int64_t rows_of_part = 32;    // enough for the rows at its ends, read twice, to cost little
constexpr int64_t plane_channels = 16;  // at once: their rows stay in the first caches

template <class T>
class PixelUpsampling {
  public:
    explicit PixelUpsampling(const ReluUpsample& a)
        : a_(a),
          height_(a.sum.height),
          width_(a.sum.width),
          rows_(held * row_size()),
          mixed_(row_size() + 2 * pixel_channels) {}

    void run(const Part& rows, int64_t part) {
        part_ = rows;
        at_ = PixelPart<T>(part, a_.sum.channels);
        held_.fill(-1);
        with_pointer<T>(a_.out.dtype, const_cast<void*>(a_.out.data), [&](auto* out) {
            for (int64_t y = rows.top; y < rows.bottom; ++y) {
                for (int phase = 0; phase < 2; ++phase) upsample(y, phase, out);
            }
        });
    }

  private:
    static constexpr int64_t held = 4;

    const ReluUpsample& a_;
    const int64_t height_, width_;
    Part part_{};
    PixelPart<T> at_{0, 0};
    Buffer<T> rows_;   // of activations, [pixel][channel]
    Buffer<T> mixed_;  // of two rows, with a cell more on either side
    std::array<int64_t, held> held_{};

    int64_t row_size() const { return width_ * pixel_channels; }

    const T* row(int64_t y) {
        y = std::clamp<int64_t>(y, 0, height_ - 1);
        T* to = rows_.get() + y % held * row_size();
        if (held_[y % held] != y) fill(y, to);
        held_[y % held] = y;
        return to;
    }

    void fill(int64_t y, T* to) {
        const Strides& s = a_.sum.strides;
        const T* sum = static_cast<const T*>(a_.sum.data) + part_.image * s.batch + y * s.row + at_.begin;
        const bool bits = a_.active != nullptr && y >= part_.top && y < part_.bottom;
        for (int64_t x = 0; x < width_; x += 8) {
            const int64_t end = std::min(x + 8, width_);
            for (int64_t c = 0; c < at_.count; c += lanes<T>) {
                PixelBits<T> active{};
                for (int64_t i = x; i < end; ++i) {
                    const Vector<T> v = load_some<T>(sum + i * s.col + c, at_.count - c);
                    const auto stopped = v <= Vector<T>{};
                    store(to + i * at_.step + c, stopped ? Vector<T>{} : v);
                    active |= stopped ? PixelBits<T>{} : PixelBits<T>{} + (1 << (i - x));
                }
                if (bits) put_bits(y, x, c, active);
            }
        }
    }

    void put_bits(int64_t y, int64_t x, int64_t c, PixelBits<T> active) const {
        std::uint8_t* to = active_row(a_.active, a_.sum, part_.image, y, at_.begin + c) + x / 8;
        const int64_t next = height_ * ((width_ + 7) / 8);
        for (int64_t i = 0; i < std::min<int64_t>(lanes<T>, at_.count - c); ++i)
            to[i * next] = static_cast<std::uint8_t>(active[i]);
    }

    // Row 2 y + phase of the upsampled result.
    template <class To>
    void upsample(int64_t y, int phase, To* out) {
        const int64_t step = at_.step;
        const T* far = row(a_.nearest ? y : phase == 0 ? y - 1 : y + 1);
        const T* near = row(y);
        T* mixed = mixed_.get() + step;
        if (!a_.nearest) {
            for (int64_t i = 0; i < width_ * step; i += lanes<T>)
                store(mixed + i, three_to_one<T>(load(near + i), load(far + i)));
            std::copy_n(mixed, step, mixed - step);
            std::copy_n(mixed + (width_ - 1) * step, step, mixed + width_ * step);
        }
        const T* cells = a_.nearest ? near : mixed;
        const Strides& s = a_.out.strides;
        To* to = out + part_.image * s.batch + (2 * y + phase) * s.row + at_.begin;
        const bool streams = can_stream(to);
        for (int64_t x = 0; x < width_; ++x, to += 2 * s.col) {
            for (int64_t c = 0; c < at_.count; c += lanes<T>) {
                const T* cell = cells + x * step + c;
                const Vector<T> v = load(cell);
                Vector<T> even = v, odd = v;
                if (!a_.nearest) {
                    even = three_to_one<T>(v, load(cell - step));
                    odd = three_to_one<T>(v, load(cell + step));
                }
                put(to + c, even, at_.count - c, streams);
                put(to + s.col + c, odd, at_.count - c, streams);
            }
        }
    }

    // Whether pixels from `to` on can be streamed: they must be made of whole lines of the cache.
    template <class To>
    bool can_stream(const To* to) const {
        constexpr int64_t line = 64 / sizeof(To);
        return sizeof(To) == sizeof(T) && exceeds_caches(a_.out) && at_.count % line == 0 &&
               a_.out.strides.col % line == 0 && reinterpret_cast<std::uintptr_t>(to) % 64 == 0;
    }

    template <class To>
    static void put(To* to, Vector<T> v, int64_t count, bool streams) {
        if constexpr (std::is_same_v<T, To>) {
            if (streams) return stream(to, v);
            return store_some(to, v, count);
        } else {
            T all[lanes<T>];
            store(all, v);
            for (int64_t i = 0; i < std::min<int64_t>(count, lanes<T>); ++i) to[i] = narrow<To>(all[i]);
        }
    }
};

// For maps of any order.
template <class T>
class PlaneUpsampling {
  public:
    explicit PlaneUpsampling(const ReluUpsample& a)
        : a_(a),
          height_(a.sum.height),
          width_(a.sum.width),
          streams_(can_stream_rows<T>(a.out)),
          stride_(2 * round_up<T>(width_)),
          rows_(plane_channels, width_),
          out_(plane_channels * stride_) {}

    void run(const Part& rows, int64_t first_channel) {
        part_ = rows;
        first_ = first_channel;
        count_ = std::min(a_.sum.channels - first_channel, plane_channels);
        rows_.forget();
        for (int64_t y = rows.top; y < rows.bottom; ++y) {
            for (int phase = 0; phase < 2; ++phase) upsample(y, phase);
        }
    }

  private:
    const ReluUpsample& a_;
    const int64_t height_, width_;
    const bool streams_;
    const int64_t stride_;  // from one channel to the next
    Part part_{};
    int64_t first_ = 0, count_ = 0;
    Ring<T> rows_;  // of activations
    Buffer<T> out_;

    const T* row(int64_t y) {
        y = std::clamp<int64_t>(y, 0, height_ - 1);
        return 1 + rows_.row(y, count_, true, [&](T* to) { fill(y, to); });
    }

    void fill(int64_t y, T* to) const {
        read_row(from_channel(a_.sum, first_), part_.image, y, 0, count_, width_, to, rows_.plane);
        const bool bits = a_.active != nullptr && y >= part_.top && y < part_.bottom;
        for (int64_t c = 0; c < count_; ++c, to += rows_.plane) {
            if (bits) write_active(to, width_, active_row(a_.active, a_.sum, part_.image, y, first_ + c));
            for (int64_t x = 0; x < width_; x += lanes<T>) store(to + x, relu(load(to + x)));
        }
    }

    // Row 2 y + phase of the upsampled result.
    void upsample(int64_t y, int phase) {
        const T* far = row(a_.nearest ? y : phase == 0 ? y - 1 : y + 1);
        const T* near = row(y);
        const TypedMap out = from_channel(a_.out, first_);
        const Strides& s = out.strides;
        T* const place =
            static_cast<T*>(const_cast<void*>(out.data)) + part_.image * s.batch + (2 * y + phase) * s.row;
        for (int64_t c = 0; c < count_; ++c, near += rows_.plane, far += rows_.plane) {
            T* to = streams_ ? place + c * s.channel : out_.get() + c * stride_;
            upsample_row(near, far, a_.nearest, width_, [&](int64_t x, Vector<T> v) {
                if (!streams_) return store(to + x, v);
                if (x < 2 * width_) stream(to + x, v);
            });
        }
        if (streams_) return;
        write_row(out, part_.image, 2 * y + phase, count_, 2 * width_, out_.get(), stride_);
    }
};

// Runs a pass on `parts` parts of the channels, of which each begins `channels` after the one before
// (or 1, if it counts them itself).
template <class Pass>
void run_parts(const ReluUpsample& a, int64_t parts, int64_t channels) {
    const Bands bands = bands_of_rows(a.sum.batch, a.sum.height, rows_of_part);
    parallel_for(
        bands.count() * parts, threads_for(a.threads, a.sum, 5 * a.sum.channels), [&] { return Pass(a); },
        [&](Pass& pass, int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) pass.run(bands[i / parts], i % parts * channels);
            end_streams();
        });
}

}  // namespace

void relu_upsample(const ReluUpsample& a) {
    in_precision_of(a.sum.dtype, [&](auto zero) {
        using T = decltype(zero);
        const int64_t channels = a.sum.channels;
        if (a.out.strides.channel == 1 && a.sum.strides.channel == 1 && channels >= lanes<T>) {
            run_parts<PixelUpsampling<T>>(a, pixel_parts(channels), 1);
        } else {
            run_parts<PlaneUpsampling<T>>(a, (channels + plane_channels - 1) / plane_channels,
                                          plane_channels);
        }
    });
}

}  // namespace sharpmask::SHARPMASK_ISA
