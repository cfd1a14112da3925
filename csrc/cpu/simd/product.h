// Products of matrices, c = a^T b, in blocks that stay in registers.
#pragma once

#include <algorithm>
#include <cstdint>

#include "maps.h"
#include "vector.h"

namespace sharpmask::SHARPMASK_ISA {

constexpr int64_t depth_at_once = 256;  // of a product: its operands stay in the first cache

// A block has 12 x 2 or 4 x 3 vectors of sums: what 32 or 16 registers hold beside the operands.
constexpr int block_rows = vector_registers == 32 ? 12 : 4;
constexpr int block_vectors = vector_registers == 32 ? 2 : 3;

template <class T>
constexpr int block_columns = block_vectors * lanes<T>;

// The rows that `a` and `c` must have room for: blocks of `block_rows` rows are followed by blocks of 4.
constexpr int64_t room_for_rows(int64_t rows) { return (rows + 3) / 4 * 4; }

template <class T>
constexpr int64_t room_for_columns(int64_t columns) {
    return (columns + block_columns<T> - 1) / block_columns<T> * block_columns<T>;
}

// Memory that is read soon. It is fetched into the cache, one line after another, during a multiplication of
// other data. It consists of stretches, each of which is repeated in `rows` rows that are `step` bytes apart.
class Ahead {
  public:
    Ahead() = default;
    Ahead(int64_t rows, int64_t step) : rows_(rows), step_(step) {}

    void add(const void* begin, int64_t bytes) {
        const auto at = reinterpret_cast<std::uintptr_t>(begin);
        for (auto line = at / 64 * 64; line < at + bytes && count_ < most; line += 64)
            lines_[count_++] = reinterpret_cast<const char*>(line);
    }

    void fetch_one() {
        if (left_ == 0) {
            if (line_ == count_) return;
            next_ = lines_[line_++];
            left_ = rows_;
        }
        __builtin_prefetch(next_, 0, 2);
        next_ += step_;
        --left_;
    }

  private:
    static constexpr int most = 32;  // what is beyond is not fetched
    const char* lines_[most];
    const char* next_ = nullptr;
    int count_ = 0, line_ = 0;
    int64_t rows_ = 0, step_ = 0, left_ = 0;  // of the line's rows
};

template <class T, int R>
void multiply_block(int64_t depth, const T* a, int64_t a_step, const T* b, int64_t b_step, bool fresh, T* c,
                    int64_t c_step, Ahead& ahead) {
    constexpr int V = block_vectors;
    Vector<T> sums[R][V];
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 3
        for (int v = 0; v < V; ++v) sums[r][v] = fresh ? Vector<T>{} : load(c + r * c_step + v * lanes<T>);
    }
    for (int64_t k = 0; k < depth; ++k, a += a_step, b += b_step) {
        ahead.fetch_one();
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

// c[row][column] = sum_k a[k][row] b[k][column] for block_columns<T> columns; it is added to c unless
// `fresh`. All three must have room for whole blocks.
template <class T>
void multiply(int64_t rows, int64_t depth, const T* a, int64_t a_step, const T* b, int64_t b_step, bool fresh,
              T* c, int64_t c_step, Ahead& ahead) {
    int64_t row = 0;
    for (; row + block_rows <= rows; row += block_rows)
        multiply_block<T, block_rows>(depth, a + row, a_step, b, b_step, fresh, c + row * c_step, c_step,
                                      ahead);
    for (; row < rows; row += 4)
        multiply_block<T, 4>(depth, a + row, a_step, b, b_step, fresh, c + row * c_step, c_step, ahead);
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
    } else if (row == 1) {  // transposed square by square
        for (int64_t c = 0; c < columns; c += n) {
            for (int64_t r = 0; r < rows; r += n) {
                Vector<T> square[n];
                for (int i = 0; i < n; ++i) {
                    square[i] =
                        i < columns - c ? load_some<T>(from + r + (c + i) * column, rows - r) : Vector<T>{};
                }
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
