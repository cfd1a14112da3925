// 3x3 convolutions by Winograd's F(2x2, 3x3): 16 products make 2x2 cells, where the formula takes 36.
//
// With the matrices of Lavin and Gray (arXiv 1509.09308, section 4.1), y = A'[(G w G') o (B'x B)]A for a tile
// x of 4x4 cells. The products of all tiles and channels at one of the 16 positions are one product of
// matrices. The gradient is transposed step by step: dw = G'[(A dy A') o (B'x B)]G.
#pragma once

#include "../horizontal.h"
#include "maps.h"
#include "parameters.h"

namespace sharpmask::SHARPMASK_ISA {

constexpr int positions = 16;
constexpr int64_t tiles_at_once = 60,
                  inputs_at_once = 64;  // both operands and the sums fit into a second cache

template <class T>
int64_t padded_outputs(int64_t outputs) {
    return (outputs + 2 * lanes<T> - 1) / (2 * lanes<T>)*(2 * lanes<T>);
}

// B'x B of vectors.
template <class V>
void transform_tile(V (&x)[positions]) {
    const auto turn = [&](int first, int step) {
        const V a = x[first], b = x[first + step], c = x[first + 2 * step], d = x[first + 3 * step];
        x[first] = a - c;
        x[first + step] = b + c;
        x[first + 2 * step] = c - b;
        x[first + 3 * step] = b - d;
    };
    for (int i = 0; i < 4; ++i) turn(i, 4);
    for (int i = 0; i < 4; ++i) turn(4 * i, 1);
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
    TransformedInput(const TypedMap& input, bool zeros, const Tiles& tiles)
        : input_(input), zeros_(zeros), tiles_(tiles), nothing_(inputs_at_once), memory_(positions * step) {}

    static constexpr int64_t step = tiles_at_once * inputs_at_once;  // from one position to the next

    const T* of(int position) const { return memory_.get() + position * step; }

    // Returns the number of tiles.
    int64_t read(int64_t block, int64_t channel, int64_t channels) {
        return tiles_.each(block, [&](int64_t place, int64_t image, int64_t y, int64_t x) {
            const T* cells[positions];
            find(image, tiles_.top + y - 1, tiles_.left + x - 1, channel, cells);
            T* to = memory_.get() + place * inputs_at_once;
            for (int64_t c = 0; c < channels; c += lanes<T>) {
                Vector<T> tile[positions];
                for (int i = 0; i < positions; ++i) tile[i] = load_some<T>(cells[i] + c, channels - c);
                transform_tile(tile);
                for (int i = 0; i < positions; ++i) store(to + i * step + c, tile[i]);
            }
        });
    }

  private:
    const TypedMap& input_;  // in T, with the channels of a cell side by side
    const bool zeros_;
    const Tiles& tiles_;
    const Buffer<T> nothing_, memory_;

    // The 4x4 cells from (y, x) on; beyond the map, what the padding is made of. The last tile may lie beyond
    // the part. What only that reads is left out: it need not be defined.
    void find(int64_t image, int64_t y, int64_t x, int64_t channel, const T* (&cells)[positions]) const {
        const Strides& s = input_.strides;
        const T* data = static_cast<const T*>(input_.data) + image * s.batch + channel;
        const auto place = [&](int64_t at, int64_t last, int64_t length) {
            const int64_t nearest = std::clamp<int64_t>(at, 0, length - 1);
            return at > last || (zeros_ && nearest != at) ? -1 : nearest;
        };
        for (int i = 0; i < 4; ++i) {
            const int64_t row = place(y + i, tiles_.top + tiles_.height, input_.height);
            for (int j = 0; j < 4; ++j) {
                const int64_t col = place(x + j, tiles_.left + tiles_.width, input_.width);
                cells[4 * i + j] = row < 0 || col < 0 ? nothing_.get() : data + row * s.row + col * s.col;
            }
        }
    }
};

// c[r][column] (+)= sum over k of a[r * RowStep + k * KStep] * b[k][column], for R rows and two vectors.
template <class T, int R, int RowStep, int KStep>
void add_product(int64_t depth, const T* a, const T* b, int64_t step, bool fresh, T* c) {
    Vector<T> sums[R][2];
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
        sums[r][0] = sums[r][1] = Vector<T>{};
        __builtin_prefetch(c + r * step, 1);
        __builtin_prefetch(c + r * step + lanes<T>, 1);
    }
    for (int64_t k = 0; k < depth; ++k, a += KStep, b += step) {
        const Vector<T> first = load(b), second = load(b + lanes<T>);
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) {
            const Vector<T> row = splat(a[r * RowStep]);
            sums[r][0] = fma(row, first, sums[r][0]);
            sums[r][1] = fma(row, second, sums[r][1]);
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
        for (int v = 0; v < 2; ++v) {
            T* to = c + r * step + v * lanes<T>;
            store(to, fresh ? sums[r][v] : load(to) + sums[r][v]);
        }
    }
}

// The same for any number of rows, and all columns: b and c have `step` of them, a multiple of two vectors.
template <class T, int RowStep, int KStep>
void add_products(int64_t rows, int64_t depth, const T* a, const T* b, int64_t step, bool fresh, T* c) {
    constexpr int most = vector_registers == 32 ? 12 : 6;
    for (int64_t column = 0; column < step; column += 2 * lanes<T>) {
        int64_t r = 0;
        const auto run = [&](auto at_once) {
            constexpr int R = at_once;
            for (; r + R <= rows; r += R)
                add_product<T, R, RowStep, KStep>(depth, a + r * RowStep, b + column, step, fresh,
                                                  c + r * step + column);
        };
        run(std::integral_constant<int, most>());
        run(std::integral_constant<int, 4>());
        run(std::integral_constant<int, 1>());
    }
}

}  // namespace sharpmask::SHARPMASK_ISA
