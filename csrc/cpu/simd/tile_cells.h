// The cells that tiles are made of, of maps of any dtype and order, and the cells that tiles make.
#pragma once

#include <limits>
#include <vector>

#include "maps.h"
#include "product.h"
#include "upsampling.h"
#include "winograd.h"

namespace sharpmask::SHARPMASK_ISA {

constexpr int64_t tiles_side_by_side = 16;  // that are read at once: their cells stay in the first cache

// A window of a map, up to inputs_at_once channels of it in T, those of a cell side by side: they are read in
// place if they lie so, else copied.
template <class T>
class WindowCells {
  public:
    // The window has up to `columns` columns. Beyond row `last_y` and column `last_x` of the map is nothing
    // that need be defined: it is read as 0.
    WindowCells(const TypedMap& map, bool zeros, int rows, int64_t columns, int64_t last_y = anywhere,
                int64_t last_x = anywhere)
        : map_(map),
          zeros_(zeros),
          in_place_(map.strides.channel == 1 && bytes_of(map.dtype) == sizeof(T)),
          rows_(rows),
          columns_(columns),
          last_y_(last_y),
          last_x_(last_x),
          cells_(rows * columns),
          offsets_(columns),
          nothing_(inputs_at_once),
          copies_(Buffer<T>::unset(in_place_ ? 0 : rows * columns * inputs_at_once)) {}

    // Moves the window to cell (y, x) of the map. Beyond the map is what the padding is made of.
    void read(int64_t image, int64_t y, int64_t x, int64_t columns, int64_t channel, int64_t channels) {
        const int64_t first = std::clamp<int64_t>(x, 0, map_.width - 1);
        const int64_t end = std::clamp<int64_t>(std::min(x + columns, last_x_ + 1), first + 1, map_.width);
        const int64_t col = in_place_ ? map_.strides.col : inputs_at_once;
        for (int64_t j = 0; j < columns; ++j) {
            const int64_t at = place(x + j, last_x_, map_.width);
            offsets_[j] = at < 0 ? nowhere : (at - first) * col;
        }
        for (int i = 0; i < rows_; ++i) {
            const int64_t row = place(y + i, last_y_, map_.height);
            const T* from =
                row < 0 ? nullptr : cells_of(i, image, row, first, end - first, channel, channels);
            const T** to = cells_.data() + i * columns_;
            for (int64_t j = 0; j < columns; ++j)
                to[j] = row < 0 || offsets_[j] == nowhere ? nothing_.get() : from + offsets_[j];
        }
    }

    const T* at(int row, int64_t column) const { return cells_[row * columns_ + column]; }

  private:
    static constexpr int64_t anywhere = std::numeric_limits<int64_t>::max() - 1, nowhere = -1;

    const TypedMap& map_;
    const bool zeros_, in_place_;
    const int rows_;
    const int64_t columns_, last_y_, last_x_;
    std::vector<const T*> cells_;
    std::vector<int64_t> offsets_;  // from the first column that is read
    const Buffer<T> nothing_, copies_;

    // Where along an axis of the map a cell is found, or `nowhere` for 0.
    int64_t place(int64_t at, int64_t last, int64_t length) const {
        const int64_t nearest = std::clamp<int64_t>(at, 0, length - 1);
        return at > last || (zeros_ && nearest != at) ? nowhere : nearest;
    }

    const T* cells_of(int i, int64_t image, int64_t y, int64_t x, int64_t count, int64_t channel,
                      int64_t channels) const {
        const Strides& s = map_.strides;
        const int64_t offset = image * s.batch + channel * s.channel + y * s.row + x * s.col;
        if (in_place_) return static_cast<const T*>(map_.data) + offset;
        T* copy = copies_.get() + i * columns_ * inputs_at_once;
        with_pointer<T>(map_.dtype, map_.data, [&](const auto* cells) {
            copy_matrix(cells + offset, s.col, s.channel, count, channels, copy, inputs_at_once);
        });
        return copy;
    }
};

// The sum of N vectors, each times its share.
template <class V, class T, std::size_t N>
V mixed(const V (&x)[N], const std::array<T, N>& shares) {
    V sum = x[0] * shares[0];
    for (std::size_t i = 1; i < N; ++i) sum = fma(splat(shares[i]), x[i], sum);
    return sum;
}

// B'x B of the tiles of an input, for some channels: [position][tile][channel of inputs_at_once].
template <class T>
class TransformedInput {
  public:
    TransformedInput(const JoinedMap& input, bool zeros, const Tiles& tiles)
        : input_(input),
          tiles_(tiles),
          plain_(!input.upsampling),
          cells_(input.map, zeros, plain_ ? 4 : 3, (plain_ ? 2 : 1) * tiles_side_by_side + 2,
                 plain_ ? tiles.top + tiles.height : input.map.height,
                 plain_ ? tiles.left + tiles.width : input.map.width) {
        if (plain_ || *input.upsampling == Upsampling::nearest) return;
        rows_ = tile_shares<T>(*input.upsampling, input.map.height, zeros);
        cols_ = tile_shares<T>(*input.upsampling, input.map.width, zeros);
    }

    // `step`: from one position to the next.
    void read(int64_t begin, int64_t end, int64_t channel, int64_t channels, T* to, int64_t step) {
        tiles_.stretches(begin, end, tiles_side_by_side, [&](const Stretch& s) {
            const int64_t y = plain_ ? tiles_.top + 2 * s.row - 1 : s.row - 1;
            const int64_t x = plain_ ? tiles_.left + 2 * s.col - 1 : s.col - 1;
            cells_.read(s.image, y, x, (plain_ ? 2 : 1) * s.count + 2, channel, channels);
            T* first = to + s.place * inputs_at_once;
            for (int64_t c = 0; c < channels; c += lanes<T>) {
                if (plain_) {
                    transform(s, c, channels - c, first + c, step);
                } else if (rows_.empty()) {
                    transform_nearest(s, c, channels - c, first + c, step);
                } else {
                    transform_bilinear(s, c, channels - c, first + c, step);
                }
            }
        });
    }

  private:
    const JoinedMap& input_;
    const Tiles& tiles_;
    const bool plain_;  // it is not upsampled
    WindowCells<T> cells_;
    std::vector<TileShares<T>> rows_, cols_;  // if it is upsampled bilinearly

    template <int N>
    void load_column(int64_t column, int64_t channel, int64_t channels, Vector<T> (&to)[N]) const {
        for (int i = 0; i < N; ++i) to[i] = load_some<T>(cells_.at(i, column) + channel, channels);
    }

    // Tiles side by side share columns, which are transformed once.
    void transform(const Stretch& s, int64_t channel, int64_t channels, T* to, int64_t step) const {
        using V = Vector<T>;
        const auto column = [&](int64_t j, V(&turned)[4]) {
            V x[4];
            load_column(j, channel, channels, x);
            transform_column(x, turned);
        };
        V a[4], b[4], next[4];
        column(0, a);
        column(1, b);
        for (int64_t t = 0; t < s.count; ++t, to += inputs_at_once) {
            column(2 * t + 2, next);
            for (int i = 0; i < 4; ++i) {
                store(to + 4 * i * step, a[i] - next[i]);
                store(to + (4 * i + 1) * step, b[i] + next[i]);
                store(to + (4 * i + 2) * step, next[i] - b[i]);
                a[i] = next[i];
            }
            column(2 * t + 3, next);
            for (int i = 0; i < 4; ++i) {
                store(to + (4 * i + 3) * step, b[i] - next[i]);
                b[i] = next[i];
            }
        }
    }

    void transform_nearest(const Stretch& s, int64_t channel, int64_t channels, T* to, int64_t step) const {
        using V = Vector<T>;
        constexpr int at[3] = {0, 1, 3};  // the rows and columns that are not 0
        const auto column = [&](int64_t j, V(&turned)[3]) {
            V x[3];
            load_column(j, channel, channels, x);
            turned[0] = x[0] - x[1];
            turned[1] = x[1] + x[1];
            turned[2] = x[1] - x[2];
        };
        V a[3], b[3], c[3];
        column(0, a);
        column(1, b);
        for (int64_t t = 0; t < s.count; ++t, to += inputs_at_once) {
            column(t + 2, c);
            for (int i = 0; i < 3; ++i) {
                store(to + 4 * at[i] * step, a[i] - b[i]);
                store(to + (4 * at[i] + at[1]) * step, b[i] + b[i]);
                store(to + (4 * at[i] + at[2]) * step, b[i] - c[i]);
                a[i] = b[i];
                b[i] = c[i];
            }
        }
    }

    void transform_bilinear(const Stretch& s, int64_t channel, int64_t channels, T* to, int64_t step) const {
        using V = Vector<T>;
        const auto column = [&](int64_t j, int k, V(&turned)[4][3]) {
            V x[3];
            load_column(j, channel, channels, x);
            for (int i = 0; i < 4; ++i) turned[i][k] = mixed(x, rows_[s.row][i]);
        };
        V columns[4][3];
        column(0, 1, columns);
        column(1, 2, columns);
        for (int64_t t = 0; t < s.count; ++t, to += inputs_at_once) {
            for (int i = 0; i < 4; ++i) {
                columns[i][0] = columns[i][1];
                columns[i][1] = columns[i][2];
            }
            column(t + 2, 2, columns);
            for (int i = 0; i < 4; ++i) {
                for (int j = 0; j < 4; ++j)
                    store(to + (4 * i + j) * step, mixed(columns[i], cols_[s.col + t][j]));
            }
        }
    }
};

// Cells side by side, pixels[cell * step + channel], to row y of a map from column x on. `planes` has room
// for `most` cells, at least `width`, of every channel.
template <class T>
void write_cells(const TypedMap& map, int64_t image, int64_t y, int64_t x, int64_t channels, int64_t width,
                 const T* pixels, int64_t step, T* planes, int64_t most) {
    const Strides& s = map.strides;
    if (s.channel != 1) copy_matrix(pixels, 1, step, channels, width, planes, most);
    with_pointer<T>(map.dtype, const_cast<void*>(map.data), [&](auto* out) {
        using To = std::remove_pointer_t<decltype(out)>;
        out += image * s.batch + y * s.row + x * s.col;
        if (s.channel == 1) {
            for (int64_t i = 0; i < width; ++i) {
                for (int64_t c = 0; c < channels; ++c) out[i * s.col + c] = narrow<To>(pixels[i * step + c]);
            }
            return;
        }
        for (int64_t c = 0; c < channels; ++c) {
            for (int64_t i = 0; i < width; ++i)
                out[c * s.channel + i * s.col] = narrow<To>(planes[c * most + i]);
        }
    });
}

}  // namespace sharpmask::SHARPMASK_ISA
