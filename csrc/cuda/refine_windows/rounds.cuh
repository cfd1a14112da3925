// Rounds: which groups of outputs a layer computes at a time, with their weights in shared memory.
#pragma once

#include "planes.cuh"

namespace sharpmask::cuda {

struct Round {
    int first_group, groups;
};

__device__ inline Round round_from(const Layer& layer, int first_group) {
    const int rest = layer.groups - first_group;
    return {first_group, rest < layer.round_groups ? rest : layer.round_groups};
}

__device__ inline void copy_floats(float* to, const float* from, int count) {
    for (int i = 4 * threadIdx.x; i < count; i += 4 * refine_threads) {
        *reinterpret_cast<float4*>(to + i) = *reinterpret_cast<const float4*>(from + i);
    }
}

// Copies the bias and the inner weights of the layers [begin, end) to shared memory, for the round that
// begins with first_group.
__device__ inline void stage_weights(const Block& block, int begin, int end, int first_group,
                                     const float* workspace) {
    for (int l = begin; l < end; ++l) {
        const Layer& layer = block.layers[l];
        const int bias = bias_floats(layer), floats = group_floats(layer);
        const float* from = workspace + layer.weights;
        const float* inner = from + bias + inner_set(layer) * layer.weight_count;
        copy_floats(block.shared + layer.staged, from, bias);
        copy_floats(block.shared + layer.staged + bias, inner + first_group * floats,
                    round_from(layer, first_group).groups * floats);
    }
}

}  // namespace sharpmask::cuda
