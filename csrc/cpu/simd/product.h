// Products of matrices, c = a^T b, in blocks that stay in registers.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../../common/half.h"
#include "simd.h"

namespace sharpmask::SHARPMASK_ISA {

// A block has 12 x 2 or 4 x 3 vectors of sums, as 32 or 16 registers hold.
constexpr int block_rows = vector_registers == 32 ? 12 : 4;
constexpr int block_vectors = vector_registers == 32 ? 2 : 3;

template <class T>
constexpr int block_columns = block_vectors * lanes<T>;

// What `a` has room for: whole blocks of `block_rows`, then of 4.
constexpr int64_t room_for_rows(int64_t rows) { return (rows + 3) / 4 * 4; }

template <class T>
constexpr int64_t room_for_columns(int64_t columns) {
    return (columns + block_columns<T> - 1) / block_columns<T> * block_columns<T>;
}

// What is to be read next, line by line of the cache, `step` bytes apart; fetched while others are
// multiplied.
struct Ahead {
    const char* data = nullptr;
    int64_t step = 0, lines = 0;
};

template <class T, int R>
void multiply_block(int64_t depth, const T* a, int64_t a_step, const T* b, int64_t b_step, bool fresh, T* c,
                    int64_t c_step, const char* ahead, int64_t ahead_step) {
    constexpr int V = block_vectors;
    Vector<T> sums[R][V];
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 3
        for (int v = 0; v < V; ++v) sums[r][v] = fresh ? Vector<T>{} : load(c + r * c_step + v * lanes<T>);
    }
    for (int64_t k = 0; k < depth; ++k, a += a_step, b += b_step, ahead += ahead_step) {
        __builtin_prefetch(ahead, 0, 2);
        Vector<T> columns[V];
#pragma GCC unroll 3
        for (int v = 0; v < V; ++v) columns[v] = load(b + v * lanes<T>);
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) {
            const Vector<T> row = splat(a[r]);
#pragma GCC unroll 3
            for (int v = 0; v < V; ++v) sums[r][v] = fma(row, columns[v], sums[r][v]);
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 3
        for (int v = 0; v < V; ++v) store(c + r * c_step + v * lanes<T>, sums[r][v]);
    }
}

// c[row][column] = sum_k a[k][row] b[k][column] for block_columns<T> columns, added to c unless `fresh`. All
// three have room for whole blocks.
template <class T>
void multiply(int64_t rows, int64_t depth, const T* a, int64_t a_step, const T* b, int64_t b_step, bool fresh,
              T* c, int64_t c_step, const Ahead& ahead = {}) {
    int64_t row = 0, line = 0;
    const auto block = [&](auto rows_at_once) {
        constexpr int R = rows_at_once;
        const bool fetch = line < ahead.lines;
        multiply_block<T, R>(depth, a + row, a_step, b, b_step, fresh, c + row * c_step, c_step,
                             fetch ? ahead.data + 64 * line : reinterpret_cast<const char*>(b),
                             fetch ? ahead.step : 0);
        row += R, ++line;
    };
    while (row + block_rows <= rows) block(std::integral_constant<int, block_rows>());
    while (row < rows) block(std::integral_constant<int, 4>());
}

// to[r * to_step + c] = from[r * row + c * column]
template <class T, class From>
void copy_matrix(const From* from, int64_t row, int64_t column, int64_t rows, int64_t columns, T* to,
                 int64_t to_step) {
    constexpr int64_t n = lanes<T>;
    if (column == 1) {
        if (columns == block_columns<T>) {
            for (int64_t r = 0; r < rows; ++r) {
                for (int c = 0; c < block_columns<T>; ++c) to[r * to_step + c] = widen(from[r * row + c]);
            }
        } else {
            for (int64_t r = 0; r < rows; ++r) {
                for (int64_t c = 0; c < columns; ++c) to[r * to_step + c] = widen(from[r * row + c]);
            }
        }
    } else if (row == 1) {  // square after square is transposed
        for (int64_t c = 0; c < columns; c += n) {
            for (int64_t r = 0; r < rows; r += n) {
                T cells[n * n];
                Vector<T> square[n];
                const From* corner = from + r + c * column;
                if (columns - c >= n && rows - r >= n) {
                    for (int i = 0; i < n; ++i) {
                        for (int j = 0; j < n; ++j) cells[i * n + j] = widen(corner[i * column + j]);
                    }
                } else {
                    for (int i = 0; i < n; ++i) {
                        for (int j = 0; j < n; ++j)
                            cells[i * n + j] =
                                c + i < columns && r + j < rows ? widen(corner[i * column + j]) : T{0};
                    }
                }
                for (int i = 0; i < n; ++i) square[i] = load(cells + i * n);
                transpose<T>(square);
                for (int i = 0; i < n && r + i < rows; ++i)
                    store_some(to + (r + i) * to_step + c, square[i], columns - c);
            }
        }
    } else {
        for (int64_t r = 0; r < rows; ++r) {
            for (int64_t c = 0; c < columns; ++c) to[r * to_step + c] = widen(from[r * row + c * column]);
        }
    }
}

}  // namespace sharpmask::SHARPMASK_ISA
