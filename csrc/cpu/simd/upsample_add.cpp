// Sums of a map and one that is upsampled by two, or made of phases, as it is read; row by row of the result.

#include <vector>

#include "../parallel.h"
#include "activations.h"
#include "bands.h"
#include "kernels.h"
#include "maps.h"

namespace sharpmask::SHARPMASK_ISA {
namespace {

constexpr int64_t channels_at_once = 16;  // their rows stay in the first caches

// What an upsampled cell is made of: (1 - share) * first + share * second.
template <class T>
struct Tap {
    int64_t first, second;
    T share;
};

template <class T>
std::vector<Tap<T>> taps_of(Upsampling upsample, int64_t length) {
    std::vector<Tap<T>> taps;
    for (int64_t i = 0; i < 2 * length; ++i) {
        const int64_t place = i * (length - 1), last = 2 * length - 1;
        if (upsample == Upsampling::nearest) {
            taps.push_back({i / 2, i / 2, 0});
        } else if (upsample == Upsampling::bilinear) {
            taps.push_back({i / 2, std::clamp<int64_t>(i / 2 + i % 2 * 2 - 1, 0, length - 1), T(0.25)});
        } else {
            const int64_t first = place / last, second = std::min(first + 1, length - 1);
            taps.push_back({first, second, static_cast<T>(place % last) / static_cast<T>(last)});
        }
    }
    return taps;
}

template <class T>
Vector<T> between(Vector<T> first, Vector<T> second, T share) {
    return fma(splat(1 - share), first, splat(share) * second);
}

template <class T>
class UpsampledRows {
  public:
    UpsampledRows(const TypedMap& map, Upsampling upsample)
        : map_(map),
          upsample_(upsample),
          rows_(taps_of<T>(upsample, map.height)),
          cols_(taps_of<T>(upsample, map.width)),
          stride_(round_up<T>(map.width) + 2 * lanes<T>),
          near_(channels_at_once * stride_),
          far_(channels_at_once * stride_) {}

    const TypedMap& map() const { return map_; }

    // Row `y`, from a channel on: to[channel * to_stride + column].
    void read(int64_t image, int64_t y, int64_t channel, int64_t channels, T* to, int64_t to_stride) {
        const Tap<T>& tap = rows_[y];
        const TypedMap part = from_channel(map_, channel);
        T *near = near_.get() + lanes<T>, *far = far_.get() + lanes<T>;
        read_row(part, image, tap.first, 0, channels, map_.width, near, stride_);
        if (tap.second != tap.first) read_row(part, image, tap.second, 0, channels, map_.width, far, stride_);
        for (int64_t c = 0; c < channels; ++c, near += stride_, far += stride_, to += to_stride) {
            if (tap.second != tap.first) {
                for (int64_t x = 0; x < map_.width; x += lanes<T>)
                    store(near + x, between(load(near + x), load(far + x), tap.share));
            }
            near[-1] = near[0];
            near[map_.width] = near[map_.width - 1];
            widen_row(near, to);
        }
    }

    // Some channels of the cell (y, x).
    Vector<T> cell(int64_t image, int64_t y, int64_t x, int64_t channel) const {
        const int64_t count = map_.channels - channel;
        const Strides& s = map_.strides;
        const T* data = static_cast<const T*>(map_.data) + image * s.batch + channel;
        const auto at = [&](int64_t row, int64_t col) {
            return load_some<T>(data + row * s.row + col * s.col, count);
        };
        const Tap<T>&v = rows_[y], &u = cols_[x];
        if (upsample_ == Upsampling::nearest) return at(v.first, u.first);
        return between(between(at(v.first, u.first), at(v.first, u.second), u.share),
                       between(at(v.second, u.first), at(v.second, u.second), u.share), v.share);
    }

  private:
    const TypedMap& map_;
    const Upsampling upsample_;
    const std::vector<Tap<T>> rows_, cols_;
    const int64_t stride_;  // from one channel to the next
    Buffer<T> near_, far_;

    void widen_row(const T* from, T* to) const {
        if (upsample_ == Upsampling::bilinear_corners) {
            for (const Tap<T>& tap : cols_)
                *to++ = (1 - tap.share) * from[tap.first] + tap.share * from[tap.second];
            return;
        }
        for (int64_t x = 0; x < map_.width; x += lanes<T>) {
            Vector<T> even = load(from + x), odd = even;
            if (upsample_ == Upsampling::bilinear) {
                odd = three_to_one<T>(even, load(from + x + 1));
                even = three_to_one<T>(even, load(from + x - 1));
            }
            const Pair<Vector<T>> pair = interleave<T>(even, odd);
            store(to + 2 * x, pair.first);
            store(to + 2 * x + lanes<T>, pair.second);
        }
    }
};

template <class T>
class PhaseRows {
  public:
    explicit PhaseRows(const TypedMap& map)
        : map_(map),
          channels_(map.channels / 4),
          stride_(round_up<T>(map.width)),
          even_(channels_at_once * stride_),
          odd_(channels_at_once * stride_) {}

    const TypedMap& map() const { return map_; }

    void read(int64_t image, int64_t y, int64_t channel, int64_t channels, T* to, int64_t to_stride) {
        const int64_t width = map_.width - 1, phase = y % 2 * 2;
        const auto read = [&](int64_t side, T* half) {
            const TypedMap part = from_channel(map_, (phase + side) * channels_ + channel);
            read_row(part, image, y / 2 + y % 2, side, channels, width, half, stride_);
        };
        read(0, even_.get());
        read(1, odd_.get());
        for (int64_t c = 0; c < channels; ++c, to += to_stride) {
            for (int64_t x = 0; x < width; x += lanes<T>) {
                const int64_t at = c * stride_ + x;
                const Pair<Vector<T>> pair = interleave<T>(load(even_.get() + at), load(odd_.get() + at));
                store(to + 2 * x, pair.first);
                store(to + 2 * x + lanes<T>, pair.second);
            }
        }
    }

    Vector<T> cell(int64_t image, int64_t y, int64_t x, int64_t channel) const {
        const Strides& s = map_.strides;
        const T* data = static_cast<const T*>(map_.data) + (y % 2 * 2 + x % 2) * channels_ + channel;
        return load_some<T>(data + image * s.batch + (y / 2 + y % 2) * s.row + (x / 2 + x % 2) * s.col,
                            channels_ - channel);
    }

  private:
    const TypedMap& map_;
    const int64_t channels_, stride_;
    Buffer<T> even_, odd_;
};

// Rows of activation(source + lateral).
template <class T, class Source>
class SumRows {
  public:
    SumRows(Source source, const TypedMap& lateral, Activation activation, const TypedMap& out)
        : source_(std::move(source)),
          lateral_(lateral),
          activation_(activation),
          out_(out),
          stride_(2 * round_up<T>(out.width / 2)),
          sum_(channels_at_once * stride_),
          beside_(channels_at_once * stride_) {}

    void run(int64_t image, int64_t y) {
        if (side_by_side(source_.map()) && side_by_side(lateral_) && side_by_side(out_))
            return by_cell(image, y);
        for (int64_t c = 0; c < out_.channels; c += channels_at_once)
            by_channel(image, y, c, std::min(channels_at_once, out_.channels - c));
    }

  private:
    Source source_;
    const TypedMap& lateral_;
    const Activation activation_;
    const TypedMap& out_;
    const int64_t stride_;
    Buffer<T> sum_, beside_;

    // Whether vectors of a cell's channels can be read and written in place.
    static bool side_by_side(const TypedMap& m) {
        return m.data == nullptr || (m.strides.channel == 1 && bytes_of(m.dtype) == sizeof(T));
    }

    void by_channel(int64_t image, int64_t y, int64_t channel, int64_t channels) {
        source_.read(image, y, channel, channels, sum_.get(), stride_);
        const bool adds = lateral_.data != nullptr;
        if (adds) {
            read_row(from_channel(lateral_, channel), image, y, 0, channels, out_.width, beside_.get(),
                     stride_);
        }
        for (int64_t i = 0; i < channels * stride_; i += lanes<T>) {
            const Vector<T> v = load(sum_.get() + i);
            store(sum_.get() + i, activated<T>(adds ? v + load(beside_.get() + i) : v, activation_));
        }
        write_row(from_channel(out_, channel), image, y, channels, out_.width, sum_.get(), stride_);
    }

    void by_cell(int64_t image, int64_t y) {
        const Strides &s = lateral_.strides, &t = out_.strides;
        const T* from = static_cast<const T*>(lateral_.data) + image * s.batch + y * s.row;
        T* to = static_cast<T*>(const_cast<void*>(out_.data)) + image * t.batch + y * t.row;
        for (int64_t x = 0; x < out_.width; ++x, from += s.col, to += t.col) {
            for (int64_t c = 0; c < out_.channels; c += lanes<T>) {
                const int64_t count = out_.channels - c;
                Vector<T> v = source_.cell(image, y, x, c);
                if (lateral_.data != nullptr) v = v + load_some<T>(from + c, count);
                store_some(to + c, activated<T>(v, activation_), count);
            }
        }
    }
};

template <class T, class Arguments, class Make>
void sum_rows(const Arguments& a, const Make& source) {
    parallel_for(
        a.out.batch * a.out.height, threads_for(a.threads, a.out, 3 * a.out.channels),
        [&] { return SumRows<T, decltype(source())>(source(), a.lateral, a.activation, a.out); },
        [&](auto& rows, int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) rows.run(i / a.out.height, i % a.out.height);
        });
}

}  // namespace

void upsample_add(const UpsampleAdd& a) {
    in_precision_of(a.out.dtype, [&](auto zero) {
        using T = decltype(zero);
        sum_rows<T>(a, [&] { return UpsampledRows<T>(a.mask, a.upsample); });
    });
}

void join_phases(const JoinPhases& a) {
    in_precision_of(a.out.dtype, [&](auto zero) {
        using T = decltype(zero);
        sum_rows<T>(a, [&] { return PhaseRows<T>(a.phases); });
    });
}

}  // namespace sharpmask::SHARPMASK_ISA
