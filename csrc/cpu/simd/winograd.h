// 3x3 convolutions by Winograd's F(2x2, 3x3): 16 products make 2x2 cells, where the formula takes 36.
//
// With the matrices of Lavin and Gray (arXiv 1509.09308, section 4.1), y = A'[(G w G') o (B'x B)]A for a tile
// x of 4x4 cells. The products of all tiles and channels at one of the 16 positions are one product of
// matrices. The gradient is transposed step by step: dw = G'[(A dy A') o (B'x B)]G.
#pragma once

#include "../horizontal.h"
#include "maps.h"
#include "parameters.h"
#include "product.h"

namespace sharpmask::SHARPMASK_ISA {

constexpr int positions = 16;
constexpr int64_t tiles_at_once = 60, inputs_at_once = 64,
                  panel_outputs = 64;  // operands and sums fit into a second cache

// B'x of a column of four cells.
template <class V>
void transform_column(const V (&x)[4], V (&to)[4]) {
    to[0] = x[0] - x[2];
    to[1] = x[1] + x[2];
    to[2] = x[2] - x[1];
    to[3] = x[1] - x[3];
}

// A dy A': from 2x2 cells to 16 positions.
template <class V>
void spread_cells(const V (&y)[4], V (&to)[positions]) {
    V rows[4][2];
    for (int j = 0; j < 2; ++j) {
        rows[0][j] = y[j];
        rows[1][j] = y[j] + y[2 + j];
        rows[2][j] = y[j] - y[2 + j];
        rows[3][j] = V{} - y[2 + j];
    }
    for (int i = 0; i < 4; ++i) {
        to[4 * i] = rows[i][0];
        to[4 * i + 1] = rows[i][0] + rows[i][1];
        to[4 * i + 2] = rows[i][0] - rows[i][1];
        to[4 * i + 3] = V{} - rows[i][1];
    }
}

// A'm A: from 16 positions to 2x2 cells.
template <class V>
void gather_cells(const V (&m)[positions], V (&to)[4]) {
    V rows[2][4];
    for (int j = 0; j < 4; ++j) {
        rows[0][j] = m[j] + m[4 + j] + m[8 + j];
        rows[1][j] = m[4 + j] - m[8 + j] - m[12 + j];
    }
    for (int i = 0; i < 2; ++i) {
        to[2 * i] = rows[i][0] + rows[i][1] + rows[i][2];
        to[2 * i + 1] = rows[i][1] - rows[i][2] - rows[i][3];
    }
}

// The part of a map that a convolution computes, in tiles of 2x2 cells, image after image.
struct Tiles {
    int64_t batch, height, width, top, left;  // of the part, and where it begins in the convolution's input
    int64_t rows = (height + 1) / 2, cols = (width + 1) / 2;

    int64_t count() const { return batch * rows * cols; }
    int64_t blocks() const { return (count() + tiles_at_once - 1) / tiles_at_once; }

    // Calls body(place in the block, image, y, x) with the first cell of every tile of a block.
    template <class Body>
    int64_t each(int64_t block, const Body& body) const {
        const int64_t begin = block * tiles_at_once, end = std::min(begin + tiles_at_once, count());
        for (int64_t i = begin; i < end; ++i)
            body(i - begin, i / (rows * cols), i / cols % rows * 2, i % cols * 2);
        return end - begin;
    }
};

// B'x B of the tiles of a block, for some channels: [position][tile][channel of inputs_at_once].
template <class T>
class TransformedInput {
  public:
    // `input`: of any dtype and order
    TransformedInput(const TypedMap& input, bool zeros, const Tiles& tiles)
        : input_(input), zeros_(zeros), tiles_(tiles), cells_(4 * row), memory_(positions * step) {}

    static constexpr int64_t step = tiles_at_once * inputs_at_once;  // from one position to the next

    const T* of(int position) const { return memory_.get() + position * step; }

    // Returns the number of tiles.
    int64_t read(int64_t block, int64_t channel, int64_t channels) {
        const int64_t begin = block * tiles_at_once, end = std::min(begin + tiles_at_once, tiles_.count());
        for (int64_t i = begin, count; i < end; i += count) {
            const int64_t col = i % tiles_.cols;
            count = std::min({tiles_.cols - col, end - i, tiles_side_by_side});
            read_cells(i / (tiles_.rows * tiles_.cols), tiles_.top + i / tiles_.cols % tiles_.rows * 2 - 1,
                       tiles_.left + col * 2 - 1, 2 * count + 2, channel, channels);
            for (int64_t c = 0; c < channels; c += lanes<T>)
                transform(count, cells_.get() + c, memory_.get() + (i - begin) * inputs_at_once + c);
        }
        return end - begin;
    }

  private:
    static constexpr int64_t tiles_side_by_side = 10;  // whose cells stay in the first cache
    static constexpr int64_t row = (2 * tiles_side_by_side + 2) * inputs_at_once;

    const TypedMap& input_;
    const bool zeros_;
    const Tiles& tiles_;
    const Buffer<T> cells_, memory_;  // cells: four rows, with the channels of a cell side by side

    // Where along an axis of the map a cell lies; beyond the map, the one that is repeated there, or -1 for
    // 0. The last tile may reach beyond the `part`: what only its outputs there read is left out, as it need
    // not be defined.
    int64_t place(int64_t at, int64_t part, int64_t length) const {
        const int64_t nearest = std::clamp<int64_t>(at, 0, length - 1);
        return at > part || (zeros_ && nearest != at) ? -1 : nearest;
    }

    // Four rows of cells from (y, x) on.
    void read_cells(int64_t image, int64_t y, int64_t x, int64_t count, int64_t channel,
                    int64_t channels) const {
        const Strides& s = input_.strides;
        const int64_t part = tiles_.left + tiles_.width, width = input_.width;
        // Cells [first, last) lie side by side in the map.
        const int64_t first = std::clamp<int64_t>(-x, 0, count);
        const int64_t last = std::clamp<int64_t>(std::min(width, part + 1) - x, first, count);
        with_pointer<T>(input_.dtype, input_.data, [&](const auto* data) {
            for (int64_t i = 0; i < 4; ++i) {
                const int64_t from = place(y + i, tiles_.top + tiles_.height, input_.height);
                const auto copy = [&](int64_t begin, int64_t end, int64_t col) {
                    T* to = cells_.get() + i * row + begin * inputs_at_once;
                    if (from < 0 || col < 0) {
                        std::fill_n(to, (end - begin) * inputs_at_once, T{0});
                    } else {
                        copy_matrix(data + image * s.batch + channel * s.channel + from * s.row + col * s.col,
                                    s.col, s.channel, end - begin, channels, to, inputs_at_once);
                    }
                };
                for (int64_t j = 0; j < first; ++j) copy(j, j + 1, place(x + j, part, width));
                if (first < last) copy(first, last, x + first);
                for (int64_t j = last; j < count; ++j) copy(j, j + 1, place(x + j, part, width));
            }
        });
    }

    // Tiles side by side, for one vector of channels. They share two columns.
    static void transform(int64_t tiles, const T* cells, T* to) {
        const auto column = [&](Vector<T>(&turned)[4]) {
            Vector<T> x[4];
            for (int i = 0; i < 4; ++i) x[i] = load(cells + i * row);
            transform_column(x, turned);
            cells += inputs_at_once;
        };
        Vector<T> a[4], b[4], c[4], d[4];
        column(a);
        column(b);
        for (int64_t t = 0; t < tiles; ++t, to += inputs_at_once) {
            column(c);
            for (int i = 0; i < 4; ++i) {
                store(to + 4 * i * step, a[i] - c[i]);
                store(to + (4 * i + 1) * step, b[i] + c[i]);
                store(to + (4 * i + 2) * step, c[i] - b[i]);
                a[i] = c[i];
            }
            column(d);
            for (int i = 0; i < 4; ++i) {
                store(to + (4 * i + 3) * step, b[i] - d[i]);
                b[i] = d[i];
            }
        }
    }
};

// c[r][column] (+)= sum over k of a[r * RowStep + k * KStep] * b[k][column], for R rows and V vectors.
template <class T, int R, int V, int RowStep, int KStep>
void add_product(int64_t depth, const T* a, const T* b, int64_t step, bool fresh, T* c) {
    Vector<T> sums[R][V];
#pragma GCC unroll 24
    for (int r = 0; r < R; ++r) {
        for (int v = 0; v < V; ++v) {
            sums[r][v] = Vector<T>{};
            __builtin_prefetch(c + r * step + v * lanes<T>, 1);
        }
    }
    for (int64_t k = 0; k < depth; ++k, a += KStep, b += step) {
        Vector<T> columns[V];
        for (int v = 0; v < V; ++v) columns[v] = load(b + v * lanes<T>);
#pragma GCC unroll 24
        for (int r = 0; r < R; ++r) {
            const Vector<T> row = splat(a[r * RowStep]);
            for (int v = 0; v < V; ++v) sums[r][v] = fma(row, columns[v], sums[r][v]);
        }
    }
#pragma GCC unroll 24
    for (int r = 0; r < R; ++r) {
        for (int v = 0; v < V; ++v) {
            T* to = c + r * step + v * lanes<T>;
            store(to, fresh ? sums[r][v] : load(to) + sums[r][v]);
        }
    }
}

// The same for any number of rows, and `columns`, in whole vectors.
template <class T, int RowStep, int KStep>
void add_products(int64_t rows, int64_t depth, const T* a, const T* b, int64_t columns, int64_t step,
                  bool fresh, T* c) {
    constexpr int most = vector_registers == 32 ? 12 : 6;
    int64_t column = 0;
    const auto all_rows = [&](auto vectors, auto... at_once) {
        constexpr int V = vectors;
        for (; column + V * lanes<T> <= columns; column += V * lanes<T>) {
            int64_t r = 0;
            const auto run = [&](auto R) {
                for (; r + R <= rows; r += R)
                    add_product<T, R, V, RowStep, KStep>(depth, a + r * RowStep, b + column, step, fresh,
                                                         c + r * step + column);
            };
            (run(at_once), ...);
        }
    };
    const std::integral_constant<int, 1> one;
    const std::integral_constant<int, 2> two;
    const std::integral_constant<int, 4> four;
    const std::integral_constant<int, most> many;
    all_rows(two, many, four, one);
    all_rows(one, std::integral_constant<int, 2 * most>(), many, four, one);
}

}  // namespace sharpmask::SHARPMASK_ISA
