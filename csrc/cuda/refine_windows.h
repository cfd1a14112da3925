// The top-down pass of all windows: see sharpmask_kernels.refine_windows.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "../common/tensor_view.h"
#include "../common/windows.h"

namespace sharpmask::cuda {

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
    std::int64_t matrix_bytes;   // of a block in the matrix form; 0: it does not compute this pass
};

// Throws std::invalid_argument where the top-down pass does not fit into a block.
Footprint refine_windows_footprint(const TopDownPass& top_down_pass, std::int64_t shared_per_block,
                                   std::int64_t shared_per_multiprocessor);

// What the top-down passes read.
struct RefineInputs {
    TensorView encoding;                  // (windows, channels, size, size)
    std::vector<TensorView> horizontals;  // (batch, channels, height, width): scale by scale, one per stage
    Windows windows;
    std::vector<TensorView> weights;                // (out, in, 3, 3): those of the stages, then the head's
    std::vector<std::optional<TensorView>> biases;  // (out)
};

// Writes all of `out`, which is dense. Without a limit: (windows, side, side) fp32 logits, aligned to 8
// bytes. With it: (windows, side, ceil(side / 8)) bytes, one bit per logit, which says whether it is above
// the limit. `workspace` is device memory, aligned to 16 bytes.
void refine_windows(const TopDownPass& top_down_pass, const RefineInputs& inputs, std::optional<float> limit,
                    void* out, void* workspace, void* stream);

}  // namespace sharpmask::cuda
