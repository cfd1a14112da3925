// The kernels of one instruction set; see ../kernels.h.
#pragma once

#include <algorithm>

#include "../kernels.h"
#include "vector.h"

namespace sharpmask::SHARPMASK_ISA {

void convolve_upsample(const ConvolveUpsample& arguments);
void relu_upsample(const ReluUpsample& arguments);
void upsample_gradient(const UpsampleGradient& arguments);
void input_gradient(const InputGradient& arguments);
void weight_gradient(const WeightGradient& arguments);
void feature_forward(const FeatureForward& arguments);
void feature_gradient(const FeatureGradient& arguments);
void refine_windows(const RefineWindows& arguments);
void horizontal(const Horizontal& arguments);
void wide_gradient(const WideGradient& arguments);
void upsampled_gradient(const UpsampledGradient& arguments);
void inverted_residual(const InvertedResidual& arguments);
void upsample_add(const UpsampleAdd& arguments);
void join_phases(const JoinPhases& arguments);
std::unique_ptr<ColumnSampler> column_sampler(const TypedMap& logits, double limit);

// Returns whether all results are finite before the activation: one that is not may have spread to the other
// cells of its tile.
bool wide_forward(const WideForward& arguments);

// The same for the gradient of an input. Returns false, too, for an odd size with "replicate" padding.
bool wide_input_gradient(const FeatureGradient& arguments);

// Whether tiles pay for a convolution from so many inputs to so many outputs, or back: with fewer, vectors
// stay empty.
inline bool worth_tiles(std::int64_t many, std::int64_t few) {
    return many >= 32 && few >= std::max<std::int64_t>(lanes<float>, 8);
}

// What weight_gradient chooses for many input channels.
void feature_weight_gradient(const WeightGradient& arguments);

}  // namespace sharpmask::SHARPMASK_ISA
