#include "../column_sampler.h"

#include <cmath>
#include <limits>

#include "kernels.h"
#include "maps.h"
#include "planes.h"

namespace sharpmask::SHARPMASK_ISA {
namespace {

// Logits are sampled in T. Where T is float and a sample lies so near the limit that rounding might decide,
// it is sampled again in fp64.
template <class T>
class Sampler final : public ColumnSampler {
  public:
    Sampler(const TypedMap& logits, double limit)
        : logits_(logits),
          side_(logits.height),
          in_place_(bytes_of(logits.dtype) == sizeof(T) && logits.strides.col == 1 && side_ % lanes<T> == 0),
          row_(in_place_ ? logits.strides.row : round_up<T>(side_)),
          limit_(limit),
          copy_(in_place_ ? 0 : side_ * row_) {}

    void start(int64_t window, const Samples& vertical) override {
        vertical_ = &vertical;
        window_ =
            in_place_ ? static_cast<const T*>(logits_.data) + window * logits_.strides.batch : copy_.get();
        for (int64_t y = 0; y < side_ && !in_place_; ++y)
            read_row(logits_, window, y, 0, 1, side_, copy_.get() + y * row_, 0);
        set_bounds();
        const int64_t length = (vertical.count() + 63) / 64 * 64;
        if (length > length_) {
            length_ = length;
            for (Buffer<T>& strip : strips_) strip = Buffer<T>(lanes<T> * length);
            rows_ = Buffer<Row>(length);
            shares_ = Buffer<T>(length);
        }
        held_[0] = held_[1] = -1;
        for (int64_t p = 0; p < length; ++p) {
            const int64_t pixel = std::min(p, vertical.count() - 1), low = vertical.low[pixel];
            rows_.get()[p] = {low * row_, std::min(low + 1, side_ - 1) * row_};
            shares_.get()[p] = static_cast<T>(vertical.fraction[pixel]);
        }
    }

    void column(int64_t low, double fraction, std::uint64_t* bits) override {
        const int64_t high = std::min(low + 1, side_ - 1), count = vertical_->count();
        const T *left = sampled(low), *right = sampled(high), share = static_cast<T>(fraction);
        for (int64_t begin = 0; begin < count; begin += 64) {
            std::uint64_t above = 0, maybe = 0;
            for (int i = 0; i < 64; i += lanes<T>) {
                const Vector<T> value =
                    between(load(left + begin + i), load(right + begin + i), splat(share));
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
    struct Row {
        int64_t low, high;  // where the rows of logits around a pixel begin
    };

    const TypedMap& logits_;
    const int64_t side_;
    const bool in_place_;
    const int64_t row_;
    const double limit_;
    const Samples* vertical_ = nullptr;
    const T* window_ = nullptr;  // the logits
    Buffer<T> copy_;             // of them, where they cannot be read in place
    Buffer<Row> rows_;           // of each vertical pixel, and of some beyond the last
    Buffer<T> shares_;
    Buffer<T> strips_[2];  // as many columns of logits as there are lanes, sampled at the vertical pixels
    int64_t held_[2] = {-1, -1}, length_ = 0;
    T surely_ = 0, maybe_ = 0;  // above the first: above the limit; not above the second: not above it
    bool all_open_ = false;

    void set_bounds() {
        surely_ = maybe_ = static_cast<T>(limit_);
        Vector<T> most{};
        for (int64_t y = 0; y < side_; ++y) {
            for (int64_t x = 0; x < side_; x += lanes<T>) {
                const Vector<T> v = load(window_ + y * row_ + x), size = v < Vector<T>{} ? -v : v;
                most = size > most ? size : most;
            }
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
        const T* from = window_ + x;
        for (int64_t p = 0; p < vertical_->count(); p += lanes<T>) {
            Vector<T> square[lanes<T>];
            for (int i = 0; i < lanes<T>; ++i) {
                const Row& row = rows_.get()[p + i];
                square[i] = between(load(from + row.low), load(from + row.high), splat(shares_.get()[p + i]));
            }
            transpose<T>(square);
            for (int i = 0; i < lanes<T>; ++i) store(to + i * length_ + p, square[i]);
        }
    }

    static Vector<T> between(Vector<T> low, Vector<T> high, Vector<T> share) {
        return fma(share, high - low, low);
    }

    bool is_above(int64_t pixel, int64_t left, int64_t right, double fraction) const {
        const int64_t low = vertical_->low[pixel];
        const T *above = window_ + low * row_, *below = window_ + std::min(low + 1, side_ - 1) * row_;
        const double share = vertical_->fraction[pixel];
        const auto lerp = [](double from, double to, double part) { return from * (1 - part) + to * part; };
        return lerp(lerp(above[left], below[left], share), lerp(above[right], below[right], share),
                    fraction) > limit_;
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
