#include "encode_windows.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "parallel.h"

namespace sharpmask {
namespace {

using std::int64_t;

// Where consecutive pixels of an axis sample a window's logits, in the arithmetic of
// windows.sample_positions.
struct Samples {
    int64_t start = 0;             // the first pixel
    std::vector<int64_t> low;      // of each pixel: the logit before it
    std::vector<double> fraction;  // and the share of the one after it

    int64_t count() const { return static_cast<int64_t>(low.size()); }
};

Samples samples(int64_t length, double ratio, int64_t cell, int64_t window) {
    const double side = static_cast<double>(window), end = static_cast<double>(length);
    const double offset = side / 2 - 16.0 * static_cast<double>(cell);
    // Brackets the pixels; v itself decides.
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

double lerp(double low, double high, double fraction) { return low * (1 - fraction) + high * fraction; }

// Runs of ones, in reading order (column by column), to the characters that COCO stores.
class Counts {
  public:
    void add(int64_t begin, int64_t end) {
        if (!edges_.empty() && edges_.back() == begin) {
            edges_.back() = end;
        } else {
            edges_.push_back(begin);
            edges_.push_back(end);
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

// The first of the bytes from `begin` on, but before `end`, that differs from that at `begin`. Eight at a
// time, as most are alike.
int64_t end_of_run(const std::uint8_t* bytes, int64_t begin, int64_t end) {
    const std::uint64_t eight = bytes[begin] * 0x0101010101010101u;
    int64_t i = begin + 1;
    while (i + 8 <= end && std::memcmp(bytes + i, &eight, 8) == 0) i += 8;
    while (i < end && bytes[i] == bytes[begin]) ++i;
    return i;
}

using State = std::uint8_t;
constexpr State background = 0, foreground = 1, mixed = 2;

struct Segment {  // consecutive pixels of a column
    int64_t begin, end;
    State state;
};

// One window. A pixel between four logits above the limit is foreground, between four below background: only
// the others are sampled. The bounds are a little apart, as rounding may move a sample across the limit.
class Encoder {
  public:
    Encoder(DType dtype, const Map& logits, double limit)
        : dtype_(dtype),
          logits_(logits),
          side_(logits.height),
          limit_(limit),
          margin_(1e-12 * (1 + std::abs(limit))) {
        columns_.resize(side_ * side_);
        states_.resize(side_ * side_);
        cells_.resize(side_);
    }

    std::string encode(int64_t window, const Samples& v, const Samples& u, int64_t height, int64_t width) {
        counts_.clear();
        if (v.count() > 0 && u.count() > 0) {
            read(window, u.low.front(), after(u.low.back()));
            first_pixel_.assign(side_ + 1, v.count());
            for (int64_t p = v.count() - 1; p >= 0; --p) first_pixel_[v.low[p]] = p;
            for (int64_t y = side_ - 1; y >= 0; --y)
                first_pixel_[y] = std::min(first_pixel_[y], first_pixel_[y + 1]);
            left_.resize(v.count());
            right_.resize(v.count());
            bits_.resize(v.count());
            for (int64_t x = 0; x < u.count(); ++x) {
                if (x == 0 || u.low[x] != u.low[x - 1]) prepare(v, u.low[x]);
                add_column((u.start + x) * height + v.start, u.fraction[x]);
            }
        }
        return counts_.characters(height * width);
    }

  private:
    DType dtype_;
    const Map& logits_;
    int64_t side_;
    double limit_, margin_;
    std::vector<double> columns_;       // the logits, transposed
    std::vector<State> states_;         // of each
    std::vector<State> cells_;          // of each cell between the columns prepared
    std::vector<int64_t> first_pixel_;  // of each cell
    std::vector<double> left_, right_;  // the columns prepared, sampled by the pixels of mixed segments
    std::vector<std::uint8_t> bits_;
    std::vector<Segment> segments_;  // those that are not background
    Counts counts_;

    int64_t after(int64_t logit) const { return std::min(logit + 1, side_ - 1); }

    template <class T>
    void read_typed(const T* from, int64_t first, int64_t last) {
        const Strides& s = logits_.strides;
        for (int64_t x = first; x <= last; ++x) {
            double* column = &columns_[x * side_];
            for (int64_t y = 0; y < side_; ++y) column[y] = widen(from[y * s.row + x * s.col]);
        }
    }

    void read(int64_t window, int64_t first, int64_t last) {
        const int64_t offset = window * logits_.strides.batch;
        switch (dtype_) {
            case DType::float16:
                read_typed(static_cast<const Half*>(logits_.data) + offset, first, last);
                break;
            case DType::bfloat16:
                read_typed(static_cast<const BFloat16*>(logits_.data) + offset, first, last);
                break;
            case DType::float32:
                read_typed(static_cast<const float*>(logits_.data) + offset, first, last);
                break;
            case DType::float64:
                read_typed(static_cast<const double*>(logits_.data) + offset, first, last);
                break;
        }
        // NaN counts as background: a sample it has a part in is none of the foreground. Infinity times 0 is
        // NaN.
        const double above = limit_ + margin_, below = limit_ - margin_, finite = 1e300;
        for (int64_t i = first * side_; i < (last + 1) * side_; ++i) {
            const double value = columns_[i];
            states_[i] = !(value > below) ? background : value > above && value < finite ? foreground : mixed;
        }
    }

    // The segments of pixels between the columns `low` and `low + 1` of logits, and both columns' samples.
    void prepare(const Samples& v, int64_t low) {
        const std::uint8_t* a = &states_[low * side_];
        const std::uint8_t* b = &states_[after(low) * side_];
        for (int64_t y = 0; y < side_; ++y) cells_[y] = a[y] == b[y] ? a[y] : mixed;
        for (int64_t y = 0; y + 1 < side_; ++y) cells_[y] = cells_[y] == cells_[y + 1] ? cells_[y] : mixed;
        segments_.clear();
        for (int64_t y = 0, end; y < side_; y = end) {
            end = end_of_run(cells_.data(), y, side_);
            const Segment segment{first_pixel_[y], first_pixel_[end], cells_[y]};
            if (segment.state == background || segment.begin == segment.end) continue;
            segments_.push_back(segment);
            if (segment.state == foreground) continue;
            const double* left = &columns_[low * side_];
            const double* right = &columns_[after(low) * side_];
            for (int64_t p = segment.begin; p < segment.end; ++p) {
                const int64_t here = v.low[p], next = after(here);
                left_[p] = lerp(left[here], left[next], v.fraction[p]);
                right_[p] = lerp(right[here], right[next], v.fraction[p]);
            }
        }
    }

    void add_column(int64_t origin, double fraction) {
        for (const Segment& segment : segments_) {
            if (segment.state == foreground) {
                counts_.add(origin + segment.begin, origin + segment.end);
                continue;
            }
            for (int64_t p = segment.begin; p < segment.end; ++p) {
                bits_[p] = lerp(left_[p], right_[p], fraction) > limit_;
            }
            for (int64_t p = segment.begin, end; p < segment.end; p = end) {
                end = end_of_run(bits_.data(), p, segment.end);
                if (bits_[p]) counts_.add(origin + p, origin + end);
            }
        }
    }
};

}  // namespace

std::vector<std::string> encode_windows(DType dtype, const Map& logits, const Windows& windows,
                                        const Axis& vertical, const Axis& horizontal, double limit,
                                        int threads) {
    std::vector<std::string> counts(windows.count);
    threads = useful_threads(threads, windows.count * logits.height * logits.height * 4);
    parallel_for(windows.count, threads, [&](int64_t begin, int64_t end) {
        Encoder encoder(dtype, logits, limit);
        for (int64_t i = begin; i < end; ++i) {
            const int64_t scale = windows.scale[i];
            Samples v, u;
            if (scale >= 0 && scale < static_cast<int64_t>(vertical.ratios.size())) {
                v = samples(vertical.length, vertical.ratios[scale], windows.row[i], logits.height);
                u = samples(horizontal.length, horizontal.ratios[scale], windows.col[i], logits.height);
            }
            counts[i] = encoder.encode(i, v, u, vertical.length, horizontal.length);
        }
    });
    return counts;
}

}  // namespace sharpmask
