#include "encode_windows.h"

#include <algorithm>
#include <cmath>

#include "column_sampler.h"
#include "kernels.h"
#include "parallel.h"

namespace sharpmask {

ColumnSampler::~ColumnSampler() = default;

namespace {

using std::int64_t;

Samples samples(int64_t length, double ratio, int64_t cell, int64_t window) {
    const double side = static_cast<double>(window), end = static_cast<double>(length);
    const double offset = side / 2 - 16.0 * static_cast<double>(cell);
    // Bounds on the pixels that lie in the window; the test of v below decides.
    const double first = std::clamp(std::floor(-offset / ratio - 0.5) - 1, 0.0, end);
    const double last = std::clamp(std::ceil((side - offset) / ratio - 0.5) + 2, first, end);
    Samples found;
    for (auto pixel = static_cast<int64_t>(first); pixel < static_cast<int64_t>(last); ++pixel) {
        const double v = (static_cast<double>(pixel) + 0.5) * ratio - 0.5 + offset;
        if (!(v >= -0.5 && v < side - 0.5)) continue;
        if (found.low.empty()) found.start = pixel;
        const double clipped = std::clamp(v, 0.0, side - 1);
        found.low.push_back(static_cast<int64_t>(clipped));
        found.fraction.push_back(clipped - static_cast<double>(found.low.back()));
    }
    return found;
}

// Turns runs of ones, in COCO's reading order (column by column), into the characters that COCO stores.
class Counts {
  public:
    // Ones begin or end at a pixel. Two toggles of the same pixel cancel.
    void toggle(int64_t pixel) {
        if (!edges_.empty() && edges_.back() == pixel) {
            edges_.pop_back();
        } else {
            edges_.push_back(pixel);
        }
    }

    void clear() { edges_.clear(); }

    std::string characters(int64_t pixels) {
        if (edges_.empty() || edges_.back() != pixels) edges_.push_back(pixels);
        text_.resize(edges_.size() * most);
        char* to = text_.data();
        int64_t before = 0, length[3] = {0, 0, 0};  // of the last runs
        for (std::size_t i = 0; i < edges_.size(); ++i) {
            const int64_t current = edges_[i] - before;
            to = write(to, i > 2 ? current - length[(i - 2) % 3] : current);
            length[i % 3] = current;
            before = edges_[i];
        }
        return {text_.data(), to};
    }

  private:
    static constexpr int most = 13;  // characters of 64 bits

    std::vector<int64_t> edges_;
    std::vector<char> text_;

    // Groups of five bits, the lowest first; bit 5 tells that more follow.
    static char* write(char* to, int64_t value) {
        for (bool more = true; more;) {
            const int64_t group = value & 31;
            value >>= 5;
            more = group & 16 ? value != -1 : value != 0;
            *to++ = static_cast<char>(group + (more ? 32 : 0) + 48);
        }
        return to;
    }
};

// Adds the places where ones begin and end in the column that starts at pixel `origin`.
void add_column(const std::vector<std::uint64_t>& bits, int64_t origin, Counts& counts) {
    std::uint64_t before = 0;
    for (const std::uint64_t word : bits) {
        for (std::uint64_t edges = word ^ (word << 1 | before); edges != 0; edges &= edges - 1)
            counts.toggle(origin + __builtin_ctzll(edges));
        before = word >> 63;
        origin += 64;
    }
    if (before != 0) counts.toggle(origin);
}

// The pixels of one axis that sample a window.
Samples samples(const Axis& axis, int64_t scale, int64_t cell, int64_t window) {
    const bool known = scale >= 0 && scale < static_cast<int64_t>(axis.ratios.size());
    return known ? samples(axis.length, axis.ratios[scale], cell, window) : Samples{};
}

}  // namespace

std::vector<std::string> encode_windows(const TypedMap& logits, const Windows& windows, const Axis& vertical,
                                        const Axis& horizontal, double limit, int threads) {
    std::vector<std::string> counts(windows.count);
    threads = useful_threads(threads, windows.count * logits.height * logits.height * 4);
    parallel_for(windows.count, threads, [&](int64_t begin, int64_t end) {
        const std::unique_ptr<ColumnSampler> sampler = kernels(logits.dtype).column_sampler(logits, limit);
        Counts runs;
        std::vector<std::uint64_t> bits;
        for (int64_t i = begin; i < end; ++i) {
            const Samples v = samples(vertical, windows.scale[i], windows.row[i], logits.height);
            const Samples u = samples(horizontal, windows.scale[i], windows.col[i], logits.height);
            runs.clear();
            if (v.count() > 0 && u.count() > 0) sampler->start(i, v);
            bits.resize((v.count() + 63) / 64);
            for (int64_t x = 0; v.count() > 0 && x < u.count(); ++x) {
                sampler->column(u.low[x], u.fraction[x], bits.data());
                add_column(bits, (u.start + x) * vertical.length + v.start, runs);
            }
            counts[i] = runs.characters(vertical.length * horizontal.length);
        }
    });
    return counts;
}

}  // namespace sharpmask
