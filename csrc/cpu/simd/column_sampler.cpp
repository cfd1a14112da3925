#include "../column_sampler.h"

#include <cmath>
#include <limits>

#include "kernels.h"
#include "maps.h"
#include "planes.h"

namespace sharpmask::SHARPMASK_ISA {
namespace {

template <class V, class T>
V lerp(V low, V high, T fraction) {
    return low * (1 - fraction) + high * fraction;
}

// Logits are sampled in T. Where T is float and a sample lies so near the limit that rounding might decide,
// it is sampled again in fp64.
template <class T>
class Sampler final : public ColumnSampler {
  public:
    Sampler(const TypedMap& logits, double limit)
        : logits_(logits),
          side_(logits.height),
          row_(round_up<T>(side_)),
          limit_(limit),
          window_(side_ * row_) {}

    void start(int64_t window, const Samples& vertical) override {
        vertical_ = &vertical;
        for (int64_t y = 0; y < side_; ++y)
            read_row(logits_, window, y, 0, 1, side_, window_.get() + y * row_, 0);
        set_bounds();
        const int64_t length = (vertical.count() + 63) / 64 * 64;
        if (length > length_) {
            length_ = length;
            for (Buffer<T>& strip : strips_) strip = Buffer<T>(lanes<T> * length);
        }
        held_[0] = held_[1] = -1;
    }

    void column(int64_t low, double fraction, std::uint64_t* bits) override {
        const int64_t high = std::min(low + 1, side_ - 1), count = vertical_->count();
        const T *left = sampled(low), *right = sampled(high), share = static_cast<T>(fraction);
        for (int64_t begin = 0; begin < count; begin += 64) {
            std::uint64_t above = 0, maybe = 0;
            for (int i = 0; i < 64; i += lanes<T>) {
                const Vector<T> value = lerp(load(left + begin + i), load(right + begin + i), share);
                above |= std::uint64_t{greater(value, splat(surely_))} << i;
                maybe |= std::uint64_t{greater(value, splat(maybe_))} << i;
            }
            const std::uint64_t valid = ~std::uint64_t{0} >> (64 - std::min<int64_t>(count - begin, 64));
            above &= valid;
            for (std::uint64_t open = (all_open_ ? valid : above ^ maybe) & valid; open != 0;
                 open &= open - 1) {
                const int i = __builtin_ctzll(open);
                const std::uint64_t bit = std::uint64_t{1} << i;
                above = is_above(begin + i, low, high, fraction) ? above | bit : above & ~bit;
            }
            bits[begin / 64] = above;
        }
    }

  private:
    const TypedMap& logits_;
    const int64_t side_, row_;
    const double limit_;
    const Samples* vertical_ = nullptr;
    Buffer<T> window_;     // the logits
    Buffer<T> strips_[2];  // as many columns of logits as there are lanes, sampled at the vertical pixels
    int64_t held_[2] = {-1, -1}, length_ = 0;
    T surely_ = 0, maybe_ = 0;  // above the first: above the limit; not above the second: not above it
    bool all_open_ = false;

    void set_bounds() {
        surely_ = maybe_ = static_cast<T>(limit_);
        if (std::is_same_v<T, double>) return;
        Vector<T> most{};
        for (int64_t i = 0; i < side_ * row_; i += lanes<T>) {
            const Vector<T> v = load(window_.get() + i), size = v < Vector<T>{} ? -v : v;
            most = size > most ? size : most;
        }
        double largest = std::abs(limit_);
        for (int i = 0; i < lanes<T>; ++i) largest = std::max<double>(largest, most[i]);
        // A sample takes some ten operations, each of which rounds by half an epsilon.
        constexpr double epsilons = 8, no_overflow = 1e30;
        const double margin = epsilons * static_cast<double>(std::numeric_limits<T>::epsilon()) * largest;
        surely_ = static_cast<T>(limit_ + margin);
        maybe_ = static_cast<T>(limit_ - margin);
        all_open_ = !(largest < no_overflow);  // infinity times 0 is NaN, and rounding makes zeros
    }

    // A column of logits, sampled at the vertical pixels.
    const T* sampled(int64_t x) {
        const int64_t strip = x / lanes<T>, slot = strip % 2;
        if (held_[slot] != strip) sample(strip * lanes<T>, strips_[slot].get());
        held_[slot] = strip;
        return strips_[slot].get() + x % lanes<T> * length_;
    }

    void sample(int64_t x, T* to) const {
        const int64_t count = vertical_->count();
        const T* from = window_.get() + x;
        for (int64_t p = 0; p < count; p += lanes<T>) {
            Vector<T> square[lanes<T>];
            for (int i = 0; i < lanes<T>; ++i) {
                const int64_t pixel = std::min(p + i, count - 1), low = vertical_->low[pixel];
                square[i] = lerp(load(from + low * row_), load(from + std::min(low + 1, side_ - 1) * row_),
                                 static_cast<T>(vertical_->fraction[pixel]));
            }
            transpose<T>(square);
            for (int i = 0; i < lanes<T>; ++i) store(to + i * length_ + p, square[i]);
        }
    }

    bool is_above(int64_t pixel, int64_t left, int64_t right, double fraction) const {
        const int64_t low = vertical_->low[pixel];
        const T *above = window_.get() + low * row_,
                *below = window_.get() + std::min(low + 1, side_ - 1) * row_;
        const double share = vertical_->fraction[pixel];
        return lerp(lerp<double>(above[left], below[left], share),
                    lerp<double>(above[right], below[right], share), fraction) > limit_;
    }
};

}  // namespace

std::unique_ptr<ColumnSampler> column_sampler(const TypedMap& logits, double limit) {
    std::unique_ptr<ColumnSampler> sampler;
    in_precision_of(logits.dtype,
                    [&](auto zero) { sampler = std::make_unique<Sampler<decltype(zero)>>(logits, limit); });
    return sampler;
}

}  // namespace sharpmask::SHARPMASK_ISA
