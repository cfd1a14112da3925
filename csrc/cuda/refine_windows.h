// The top-down pass of all windows: see sharpmask_kernels.refine_windows.
#pragma once

#include <cstdint>
#include <vector>

#include "../common/half.h"
#include "../common/maps.h"
#include "../common/windows.h"

namespace sharpmask::cuda {

// A convolution's weight (out, in, 3, 3) and bias (out) (null: none), with any strides.
struct Convolution {
    const void* weight;
    std::int64_t strides[4];
    const void* bias;
    std::int64_t bias_stride;
};

// The shapes and modes of a top-down pass.
struct TopDownPass {
    std::int64_t size, channels;             // of the encodings (windows, channels, size, size)
    std::vector<std::int64_t> convs;         // of each stage; the head is one more
    std::vector<std::int64_t> out_channels;  // of every convolution
    bool nearest, zeros;                     // upsample == "nearest", padding_mode == "zeros"
};

// Bytes of device memory that refine_windows needs for the weights in its own order.
std::int64_t refine_windows_workspace(const TopDownPass& top_down_pass);

// How a block of refine_windows uses a GPU's shared memory.
struct Footprint {
    std::int64_t shared_bytes;   // of a block
    std::int64_t rounds;         // of a layer, each with its weights; 0: weights are staged once per block
    std::int64_t banded_layers;  // the last ones, which run in bands of rows
    std::int64_t band_rows;      // of the head's input
    std::int64_t instructions;   // of a thread for a window, estimated
};

// Throws std::invalid_argument where the top-down pass does not fit into a block.
Footprint refine_windows_footprint(const TopDownPass& top_down_pass, std::int64_t shared_per_block,
                                   std::int64_t shared_per_multiprocessor);

// What the top-down pass of each window reads.
struct RefineInputs {
    const void* encoding;
    Strides strides;               // of the encoding
    DType dtype;                   // of all maps and parameters
    std::vector<Map> horizontals;  // scale after scale, one map per stage
    std::int64_t batch;            // of the maps
    Windows windows;
    std::vector<Convolution> convolutions;  // those of the stages, then the head
};

// Writes all of `out`: (windows, side, side) fp32 logits, aligned to 8 bytes; or, if `bits`, (windows, side,
// ceil(side / 8)) bytes, a bit for every logit above `limit`. `workspace` is device memory, aligned to 16
// bytes.
void refine_windows(const TopDownPass& top_down_pass, const RefineInputs& inputs, bool bits, float limit,
                    void* out, void* workspace, void* stream);

}  // namespace sharpmask::cuda
