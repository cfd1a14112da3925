// A chain of 3x3 convolutions, row by row: of every map between two convolutions, three rows are held.

#include <algorithm>
#include <deque>

#include "../parallel.h"
#include "groups.h"
#include "kernels.h"

namespace sharpmask::SHARPMASK_ISA {
namespace {

constexpr int64_t held_bytes = 192 << 10;  // of the rows held by a task: they stay in the second cache

// A rectangle of the result.
struct Area {
    int64_t image, top, bottom, left, right;
};

// Three rows of a map between convolutions, in the columns that a part needs, with a border of one cell.
template <class T>
class Rows {
  public:
    Rows(int64_t channels, int64_t widest)
        : channels_(channels), cells_(widest + 2), memory_(4 * groups_of<T>(channels) * cells_ * group<T>) {}

    // Begins with a part: rows from `top` on, columns [left, right) of a map (height, width).
    void begin(int64_t top, int64_t left, int64_t right, int64_t height, int64_t width, bool zeros) {
        next = top;
        left_ = left;
        right_ = right;
        height_ = height;
        width_ = width;
        zeros_ = zeros;
    }

    int64_t next = 0;  // row to be made
    int64_t left() const { return left_; }
    int64_t count() const { return right_ - left_; }
    int64_t height() const { return height_; }

    // Where row `next` is to be written.
    Row<T> fresh() const { return from_left(slot(next % 3), 0); }

    // Row `next` is written: adds what lies beside it, at the border of the map.
    void done() {
        const Row<T> row = slot(next % 3);
        for (int64_t g = 0; g < groups_of<T>(channels_); ++g) {
            T* cells = row.of(g);
            if (left_ == 0) repeat(cells + group<T>, cells);
            T* last = cells + count() * group<T>;
            if (right_ == width_) repeat(last, last + group<T>);
        }
        ++next;
    }

    // Row `y` from the column before `x` on; beyond the map, what the padding is made of.
    Row<T> before(int64_t y, int64_t x) const {
        const bool beyond = y < 0 || y >= height_;
        const Row<T> row = slot(beyond && zeros_ ? 3 : std::clamp<int64_t>(y, 0, height_ - 1) % 3);
        return from_left(row, x - 1 - left_);
    }

  private:
    int64_t channels_, cells_, left_ = 0, right_ = 0, height_ = 0, width_ = 0;
    bool zeros_ = false;
    Buffer<T> memory_;  // three rows, and a row of zeros

    Row<T> slot(int64_t i) const {
        return {memory_.get() + i * groups_of<T>(channels_) * cells_ * group<T>, cells_};
    }
    static Row<T> from_left(Row<T> row, int64_t column) {
        row.data += (column + 1) * group<T>;
        return row;
    }
    void repeat(const T* from, T* to) const {
        for (int64_t i = 0; i < group<T>; ++i) to[i] = zeros_ ? T{0} : from[i];
    }
};

template <class T>
class Chain {
  public:
    Chain(const Horizontal& a, const std::vector<Matrix<T>>& convs, int64_t widest)
        : a_(a),
          convs_(convs),
          pixels_((widest + 2 * depth()) * a.feature.channels),
          scratch_(round_up<T>(widest + 2 * depth()) * a.feature.channels),
          out_(groups_of<T>(a.out.channels) * widest * group<T>),
          widest_(widest) {
        for (int64_t i = 0; i < depth(); ++i) rows_.emplace_back(convs[i].inputs, widest + 2 * (depth() - i));
    }

    void run(const Area& part) {
        const int64_t height = a_.feature.height, width = a_.feature.width;
        image_ = part.image;
        for (int64_t i = 0; i < depth(); ++i) {
            const int64_t reach = depth() - i;  // of the result beyond its own cells
            rows_[i].begin(std::max<int64_t>(part.top - reach, 0), std::max<int64_t>(part.left - reach, 0),
                           std::min(part.right + reach, width), height, width, a_.zeros);
        }
        const Row<T> out{out_.get(), widest_};
        for (int64_t y = part.top; y < part.bottom; ++y) {
            make(depth() - 1, y + 2);
            convolve(depth() - 1, y, part.left, part.right - part.left, a_.relu ? Clip::relu : Clip::none,
                     out);
            write_groups(a_.out, image_, y, part.left, part.right - part.left, out);
        }
    }

  private:
    const Horizontal& a_;
    const std::vector<Matrix<T>>& convs_;
    Buffer<T> pixels_, scratch_, out_;
    const int64_t widest_;
    std::deque<Rows<T>> rows_;  // the input of every convolution
    int64_t image_ = 0;

    int64_t depth() const { return static_cast<int64_t>(convs_.size()); }

    // Makes the rows of a convolution's input before `end`.
    void make(int64_t conv, int64_t end) {
        Rows<T>& rows = rows_[conv];
        for (end = std::min(end, rows.height()); rows.next < end; rows.done()) {
            if (conv == 0) {
                const int64_t channels = a_.feature.channels;
                read_pixels(a_.feature, image_, rows.next, rows.left(), channels, rows.count(), pixels_.get(),
                            scratch_.get());
                to_groups(pixels_.get(), channels, rows.count(), rows.fresh());
            } else {
                make(conv - 1, rows.next + 2);
                convolve(conv - 1, rows.next, rows.left(), rows.count(), Clip::relu, rows.fresh());
            }
        }
    }

    void convolve(int64_t conv, int64_t y, int64_t left, int64_t count, Clip clip, const Row<T>& to) const {
        Row<T> taps[9];
        for (int64_t tap = 0; tap < 9; ++tap) {
            taps[tap] = rows_[conv].before(y + tap / 3 - 1, left);
            taps[tap].data += tap % 3 * group<T>;
        }
        multiply_row(count, taps, convs_[conv], clip, to);
    }
};

// The parts of the result that are needed, none wider than `widest` or higher than `highest`: runs of needed
// tiles of a row, with those above them that are alike.
std::vector<Area> parts_of(const Horizontal& a, int64_t widest, int64_t highest) {
    const TypedMap& out = a.out;
    std::vector<Area> parts;
    std::vector<std::size_t> above, current;  // parts in the last row of tiles and in this one
    const auto add = [&](int64_t image, int64_t top, int64_t bottom, int64_t left, int64_t right) {
        const int64_t pieces = (right - left + widest - 1) / widest;
        for (int64_t i = 0; i < pieces; ++i) {
            const Area part{image, top, bottom, left + (right - left) * i / pieces,
                            left + (right - left) * (i + 1) / pieces};
            const auto at = std::lower_bound(above.begin(), above.end(), part.left,
                                             [&](std::size_t p, int64_t x) { return parts[p].left < x; });
            const bool alike = at != above.end() && parts[*at].left == part.left &&
                               parts[*at].right == part.right && bottom - parts[*at].top <= highest;
            current.push_back(alike ? *at : parts.size());
            if (alike) {
                parts[*at].bottom = bottom;
            } else {
                parts.push_back(part);
            }
        }
    };
    for (int64_t image = 0; image < out.batch; ++image) {
        if (!a.needed) {
            for (int64_t top = 0; top < out.height; top += highest)
                add(image, top, std::min(top + highest, out.height), 0, out.width);
            continue;
        }
        const TensorView& n = *a.needed;
        above.clear();
        for (int64_t row = 0; row < n.sizes[1]; ++row) {
            const auto needed = [&](int64_t col) {
                return col < n.sizes[2] &&
                       static_cast<const bool*>(
                           n.data)[image * n.strides[0] + row * n.strides[1] + col * n.strides[2]];
            };
            for (int64_t col = 0, end; col < n.sizes[2]; col = end + 1) {
                for (end = col; needed(end); ++end) {
                }
                if (end > col) {
                    add(image, row * a.tile, std::min((row + 1) * a.tile, out.height), col * a.tile,
                        std::min(end * a.tile, out.width));
                }
            }
            above.swap(current);
            current.clear();
        }
    }
    return parts;
}

template <class T>
void run_chain(const Horizontal& a) {
    if (a.out.batch * a.out.height * a.out.width * a.out.channels == 0) return;
    std::vector<Matrix<T>> convs;
    int64_t held = 0;  // groups of channels of a column
    for (std::size_t i = 0; i < a.weights.size(); ++i) {
        convs.emplace_back(a.weights[i], a.biases[i]);
        held += 3 * groups_of<T>(convs.back().inputs);
    }
    const int64_t fitting = held_bytes / static_cast<int64_t>(held * group<T> * sizeof(T));
    const int64_t widest = std::max<int64_t>(fitting - 2 * a.weights.size(), 16);
    // Rows at a part's border are computed twice.
    const int64_t share = (a.out.batch * a.out.height + 4 * a.threads - 1) / (4 * a.threads);
    const std::vector<Area> parts = parts_of(a, widest, std::max<int64_t>(share, 16));
    parallel_for(
        parts.size(), a.threads, [&] { return Chain<T>(a, convs, widest); },
        [&](Chain<T>& chain, int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) chain.run(parts[i]);
        });
}

}  // namespace

void horizontal(const Horizontal& a) {
    in_precision_of(a.out.dtype, [&](auto zero) { run_chain<decltype(zero)>(a); });
}

}  // namespace sharpmask::SHARPMASK_ISA
