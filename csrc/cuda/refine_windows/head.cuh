// The last layer, the head: its one channel goes to global memory, as logits or as bits.
#pragma once

#include "tile.cuh"

namespace sharpmask::cuda {

template <Taps taps>
using HeadTile = Tile<taps, 4>;  // the outputs are the four phases
constexpr int head_rows = HeadTile<Taps::full>::rows;
using HeadSums = Sums<4, head_rows>;
static_assert(head_rows == 8);

// What the head writes. `out` is the window's part.
struct Result {
    void* out;
    bool bits;
    float limit;  // a bit says whether its logit is greater
};

template <class Tile>
__device__ __forceinline__ void write_logits(HeadSums& sums, const Tile& tile, const Layer& layer,
                                             const Rows& range, float bias, float* out) {
    const int side = 2 * layer.side;
    for (int r = 0; r < head_rows; ++r, sums.next()) {
        const int y = tile.y + r;
        if (!tile.real || y >= range.end || tile.x >= layer.side) continue;
        const float* v = sums.values[0];
        auto* pair = reinterpret_cast<float2*>(out + 2 * y * side + 2 * tile.x);
        pair[0] = float2{v[0] + bias, v[1] + bias};
        pair[side / 2] = float2{v[2] + bias, v[3] + bias};
    }
}

// A byte is eight columns of pixels, two from each of four neighbouring threads. Their 16 rows make 16 bytes,
// of which each thread writes four.
template <class Tile>
__device__ __forceinline__ void write_bits(const HeadSums& sums, const Tile& tile, const Layer& layer,
                                           const Rows& range, float bias, float limit, std::uint8_t* out) {
    const int side = 2 * layer.side;
    const unsigned quarter = threadIdx.x % 4;
    unsigned words[4] = {};
#pragma unroll
    for (int r = 0; r < head_rows; ++r) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            const bool bit = tile.x < layer.side && sums.values[r][k] + bias > limit;
            words[r / 2] |= static_cast<unsigned>(bit) << (r % 2 * 16 + k / 2 * 8 + k % 2) << 2 * quarter;
        }
    }
    unsigned word = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        words[i] |= __shfl_xor_sync(0xffffffffu, words[i], 1);
        words[i] |= __shfl_xor_sync(0xffffffffu, words[i], 2);
        if (i == static_cast<int>(quarter)) word = words[i];
    }
    for (int i = 0; i < 4; ++i) {
        const int y = tile.y + 2 * static_cast<int>(quarter) + i / 2;
        if (!tile.real || y >= range.end) continue;
        out[(2 * y + i % 2) * ((side + 7) / 8) + tile.x / 4] = static_cast<std::uint8_t>(word >> 8 * i);
    }
}

template <Taps taps>
__device__ __forceinline__ void run_head(const Layer& layer, const Rows& range, const Planes& input,
                                         const float* shared, const float* workspace, const Result& result) {
    const float bias = shared[layer.staged];
    const Round round{0, layer.groups};
    const int count = HeadTile<taps>::count(layer, range, round);
    for (int work = threadIdx.x; work < count; work += refine_threads) {
        const HeadTile<taps> tile(layer, range, round, work);
        auto sums = tile.convolve(layer, input, shared, workspace);
        if (result.bits) {
            write_bits(sums, tile, layer, range, bias, result.limit, static_cast<std::uint8_t*>(result.out));
        } else {
            write_logits(sums, tile, layer, range, bias, static_cast<float*>(result.out));
        }
    }
}

}  // namespace sharpmask::cuda
