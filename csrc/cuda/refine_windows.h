// The cascade of all windows: see sharpmask_kernels.refine_windows.
#pragma once

#include <cstdint>
#include <vector>

#include "../common/half.h"
#include "../common/maps.h"
#include "../common/windows.h"

namespace sharpmask::cuda {

// A convolution's weight (out, in, 3, 3) and bias (out; null: none), of any strides.
struct Convolution {
    std::int64_t out_channels;
    const void* weight;
    std::int64_t strides[4];
    const void* bias;
    std::int64_t bias_stride;
};

// What a cascade is, apart from its values.
struct Cascade {
    std::int64_t size, channels;             // of the encodings (windows, channels, size, size)
    std::vector<std::int64_t> convs;         // of each stage; the head is one more
    std::vector<std::int64_t> out_channels;  // of every convolution
    bool nearest, zeros;                     // upsample == "nearest", padding_mode == "zeros"
};

// Bytes of device memory that refine_windows works with: the weights, prepared.
std::int64_t refine_windows_workspace(const Cascade& cascade);

// How the blocks of refine_windows lie in a GPU's shared memory.
struct Footprint {
    std::int64_t shared_bytes;  // of a block
    std::int64_t passes;        // of a layer, each with its weights; 0: all weights are staged once per block
    std::int64_t banded_layers;  // the last ones, which run in bands of rows
    std::int64_t band_rows;      // of the head's input
    std::int64_t instructions;   // of a thread for a window, estimated
};

// Throws std::invalid_argument where the cascade does not fit into a block.
Footprint refine_windows_footprint(const Cascade& cascade, std::int64_t shared_per_block,
                                   std::int64_t shared_per_multiprocessor);

// Writes all of `out`, (windows, side, side) fp32 logits or, if `bits`, (windows, side, ceil(side / 8))
// bytes, a bit for every logit above `limit`. `horizontals` are scale after scale, one map per stage;
// `convolutions` are those of the stages, then the head. `workspace` is device memory aligned to 16 bytes;
// logits are to be aligned to 8.
void refine_windows(const void* encoding, const Strides& strides, DType dtype, const Cascade& cascade,
                    const std::vector<Map>& horizontals, const Windows& windows, std::int64_t batch,
                    const std::vector<Convolution>& convolutions, bool bits, float limit, void* out,
                    void* workspace, void* stream);

}  // namespace sharpmask::cuda
