// 3x3 convolutions by Winograd's F(2x2, 3x3): 16 products make 2x2 cells, where the formula takes 36.
//
// With the matrices of Lavin and Gray (arXiv 1509.09308, section 4.1), y = A'[(G w G') o (B'x B)]A for a tile
// x of 4x4 cells. The products of all tiles and channels at one of the 16 positions are one product of
// matrices. The gradient is transposed step by step: dw = G'[(A dy A') o (B'x B)]G.
//
// A map that is upsampled first has a tile for each of its cells, made of 3x3 cells: the upsampled map is
// never made. If it is upsampled by "nearest", the tile's rows (and columns) are those of the cells a, b, b,
// c, and B' makes a - b, 2 b, 0, b - c of them. So only 9 of the 16 products are left.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../wide.h"

namespace sharpmask::SHARPMASK_ISA {

constexpr int positions = 16;
constexpr std::int64_t inputs_at_once = 64;  // of a map, that are transformed and multiplied

// Whether a tile of a map upsampled by "nearest" is not 0 at a position.
constexpr bool is_nonzero(int position) { return position % 4 != 2 && position / 4 != 2; }

// B'x of a column of four cells.
template <class V>
void transform_column(const V (&x)[4], V (&to)[4]) {
    to[0] = x[0] - x[2];
    to[1] = x[1] + x[2];
    to[2] = x[2] - x[1];
    to[3] = x[1] - x[3];
}

// G w G'
template <class V>
void transform_taps(const V (&w)[9], V (&to)[positions]) {
    const auto turn = [](V a, V b, V c, V* four, int step) {
        four[0] = a;
        four[step] = (a + c + b) / 2;
        four[2 * step] = (a + c - b) / 2;
        four[3 * step] = c;
    };
    V rows[4 * 3];
    for (int j = 0; j < 3; ++j) turn(w[j], w[3 + j], w[6 + j], rows + j, 3);
    for (int i = 0; i < 4; ++i) turn(rows[3 * i], rows[3 * i + 1], rows[3 * i + 2], to + 4 * i, 1);
}

// G'u G
template <class V>
void gather_taps(const V (&u)[positions], V (&to)[9]) {
    const auto turn = [](const V* four, int step, V* three, int to_step) {
        const V sum = (four[step] + four[2 * step]) / 2;
        three[0] = four[0] + sum;
        three[to_step] = (four[step] - four[2 * step]) / 2;
        three[2 * to_step] = sum + four[3 * step];
    };
    V rows[3 * 4];
    for (int j = 0; j < 4; ++j) turn(u + j, 4, rows + j, 4);
    for (int i = 0; i < 3; ++i) turn(rows + 4 * i, 1, to + 3 * i, 1);
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

// Tiles side by side, `place` and the following of a range.
struct Stretch {
    std::int64_t place, image, row, col, count;
};

// The part of a map that a convolution computes, in tiles of 2x2 cells, image after image.
struct Tiles {
    std::int64_t batch, height, width;
    std::int64_t top = 0, left = 0;  // where the part begins in the convolution's input
    std::int64_t rows = (height + 1) / 2, cols = (width + 1) / 2;

    std::int64_t count() const { return batch * rows * cols; }

    // Calls body(stretch) for the tiles [begin, end), `most` at a time.
    template <class Body>
    void stretches(std::int64_t begin, std::int64_t end, std::int64_t most, const Body& body) const {
        for (std::int64_t i = begin, count; i < end; i += count) {
            const std::int64_t col = i % cols;
            count = std::min({cols - col, end - i, most});
            body(Stretch{i - begin, i / (rows * cols), i / cols % rows, col, count});
        }
    }
};

// Tiles of a block, for sums that do not go beyond a tile. They are few where all weights are kept, as then a
// block's cells stay in the second cache.
inline std::int64_t block_of_tiles(std::int64_t tiles, bool weights_kept) {
    constexpr std::int64_t step = 12;  // rows of a product
    const std::int64_t most = weights_kept ? 60 : 144;
    const std::int64_t blocks = std::max<std::int64_t>((tiles + most - 1) / most, 1);
    const std::int64_t each = (tiles + blocks - 1) / blocks;
    return std::max((each + step - 1) / step * step, step);
}

}  // namespace sharpmask::SHARPMASK_ISA
