// The kernels that are compiled once for every instruction set, and the choice among them.
//
// The files of simd/ are compiled several times, each time into a namespace SHARPMASK_ISA of its own.
// Whatever inline function they use must lie in that namespace or be inlined for certain: of two copies the
// linker keeps one, perhaps the one that this processor cannot run.
#pragma once

#include <memory>
#include <string>

#include "column_sampler.h"
#include "decoder.h"
#include "horizontal.h"
#include "inverted_residual.h"
#include "refine_windows.h"
#include "refinement.h"
#include "wide.h"

namespace sharpmask {

struct Kernels {
    const char* isa;
    void (*convolve_upsample)(const ConvolveUpsample&);
    void (*relu_upsample)(const ReluUpsample&);
    void (*upsample_gradient)(const UpsampleGradient&);
    void (*input_gradient)(const InputGradient&);
    void (*weight_gradient)(const WeightGradient&);
    void (*feature_forward)(const FeatureForward&);
    void (*feature_gradient)(const FeatureGradient&);
    void (*refine_windows)(const RefineWindows&);
    void (*horizontal)(const Horizontal&);
    bool (*wide_forward)(const WideForward&);
    void (*wide_gradient)(const WideGradient&);
    bool (*wide_input_gradient)(const FeatureGradient&);
    void (*upsampled_gradient)(const UpsampledGradient&);
    void (*inverted_residual)(const InvertedResidual&);
    void (*upsample_add)(const UpsampleAdd&);
    void (*join_phases)(const JoinPhases&);
    std::unique_ptr<ColumnSampler> (*column_sampler)(const TypedMap& logits, double limit);
};

// The kernels for the instruction set that the environment variable SHARPMASK_CPU_ISA names, else for the
// best one of this processor. Throws std::invalid_argument where the variable names none that was compiled
// and that runs here.
const Kernels& kernels();

// The same for maps of a dtype. fp64 serves checks, not speed: only the least set is compiled for it, with
// SHARPMASK_FP64, for it would nearly double the time that every other set takes to compile.
const Kernels& kernels(DType dtype);

// The instruction sets that run here, best last, separated by commas.
std::string usable_isas();

}  // namespace sharpmask
