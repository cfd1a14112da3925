// The gradient of a convolution's result, as the products of its input's and its weight's gradient read it.
#pragma once

#include "panels.h"
#include "tile_cells.h"

namespace sharpmask::SHARPMASK_ISA {

// Where the value of a position, a tile and an output goes.
template <class T>
struct GradientOrder {
    int64_t position, tile, panel_step;

    int64_t operator()(int p, int64_t t, int64_t o) const {
        return p * position + t * tile + o / panel<T> * panel_step + o % panel<T>;
    }
};

// A dy A' at 16 positions. For an input that is upsampled first, it is 9 sums: for every tap, the gradients
// that reach a cell of the small map through it.
template <class T>
class TileGradients {
  public:
    TileGradients(const TypedMap& grad, const Tiles& tiles, std::optional<Upsampling> upsampling, bool zeros)
        : tiles_(tiles),
          upsampling_(upsampling),
          zeros_(zeros),
          before_(!upsampling                          ? 0
                  : *upsampling == Upsampling::nearest ? 1
                                                       : 2),
          cells_(grad, true, 2 + 2 * before_, 2 * (tiles_side_by_side + before_)) {
        if (before_ < 2) return;
        rows_ = tap_shares<T>(*upsampling, tiles.rows, zeros);
        cols_ = tap_shares<T>(*upsampling, tiles.cols, zeros);
    }

    int count() const { return upsampling_ ? 9 : positions; }

    // Which of them is the sum over a tile's cells or, of all tiles, over all cells.
    int whole() const { return upsampling_ ? 4 : 5; }

    // Of the outputs [output, output + outputs), at most inputs_at_once.
    void read(int64_t begin, int64_t end, int64_t output, int64_t outputs, const GradientOrder<T>& order,
              T* to) {
        tiles_.stretches(begin, end, tiles_side_by_side, [&](const Stretch& s) {
            cells_.read(s.image, 2 * s.row - before_, 2 * s.col - before_, 2 * (s.count + before_), output,
                        outputs);
            for (int64_t i = 0; i < s.count; ++i) {
                for (int64_t o = 0; o < outputs; o += lanes<T>) {
                    if (before_ == 0) spread(s, i, o, outputs - o, order, to);
                    if (before_ == 1) sum_nearest(s, i, o, outputs - o, order, to);
                    if (before_ == 2) sum_bilinear(s, i, o, outputs - o, order, to);
                }
            }
        });
    }

  private:
    const Tiles& tiles_;
    const std::optional<Upsampling> upsampling_;
    const bool zeros_;
    const int before_;  // cells before those of a tile, and after them, that are read
    WindowCells<T> cells_;
    std::vector<TapShares<T>> rows_, cols_;  // if the input is upsampled bilinearly

    // Column `col` of what is read for tile i, for a vector of outputs.
    template <int N>
    void load_cells(int64_t i, int col, int64_t o, int64_t count, Vector<T> (&to)[N]) const {
        for (int row = 0; row < N; ++row) to[row] = load_some<T>(cells_.at(row, 2 * i + col) + o, count);
    }

    void spread(const Stretch& s, int64_t i, int64_t o, int64_t count, const GradientOrder<T>& order,
                T* to) const {
        Vector<T> left[2], right[2], all[positions];
        load_cells(i, 0, o, count, left);
        load_cells(i, 1, o, count, right);
        spread_cells({left[0], right[0], left[1], right[1]}, all);
        for (int p = 0; p < positions; ++p) store(to + order(p, s.place + i, o), all[p]);
    }

    // Through tap 0, 1 and 2, the cells 1 to 2, 0 to 1 and -1 to 0 read the small cell; at a replicated
    // border they read it once more.
    void sum_nearest(const Stretch& s, int64_t i, int64_t o, int64_t count, const GradientOrder<T>& order,
                     T* to) const {
        const auto taps = [&](const Vector<T>(&x)[4], int64_t at, int64_t length, Vector<T>(&sums)[3]) {
            sums[0] = x[2] + x[3];
            sums[1] = x[1] + x[2];
            sums[2] = x[0] + x[1];
            if (!zeros_ && at == 0) sums[0] += x[1];
            if (!zeros_ && at == length - 1) sums[2] += x[2];
        };
        Vector<T> down[3][4];
        for (int j = 0; j < 4; ++j) {
            Vector<T> column[4], sums[3];
            load_cells(i, j, o, count, column);
            taps(column, s.row, tiles_.rows, sums);
            for (int tap = 0; tap < 3; ++tap) down[tap][j] = sums[tap];
        }
        for (int tap = 0; tap < 3; ++tap) {
            Vector<T> sums[3];
            taps(down[tap], s.col + i, tiles_.cols, sums);
            for (int j = 0; j < 3; ++j) store(to + order(3 * tap + j, s.place + i, o), sums[j]);
        }
    }

    void sum_bilinear(const Stretch& s, int64_t i, int64_t o, int64_t count, const GradientOrder<T>& order,
                      T* to) const {
        Vector<T> down[3][reach];
        for (int j = 0; j < reach; ++j) {
            Vector<T> column[reach];
            load_cells(i, j, o, count, column);
            for (int tap = 0; tap < 3; ++tap) down[tap][j] = mixed(column, rows_[s.row][tap]);
        }
        for (int tap = 0; tap < 3; ++tap) {
            for (int j = 0; j < 3; ++j)
                store(to + order(3 * tap + j, s.place + i, o), mixed(down[tap], cols_[s.col + i][j]));
        }
    }
};

}  // namespace sharpmask::SHARPMASK_ISA
