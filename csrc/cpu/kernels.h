// The kernels that are compiled once for every instruction set, and the choice among them.
//
// The files of simd/ are compiled several times, each time into a namespace SHARPMASK_ISA of its own.
// Whatever inline function they use must lie in that namespace or be inlined for certain: of two copies the
// linker keeps one, perhaps the one that this processor cannot run.
#pragma once

#include <string>

#include "column_sampler.h"
#include "refine_windows.h"
#include "refinement.h"

namespace sharpmask {

struct Kernels {
    const char* isa;
    std::unique_ptr<ColumnSampler> (*column_sampler)(DType dtype, const Map& logits, double limit);
    // ReLU(conv(feature)) of one input of many channels, without addend, mask, upsample and bits.
    void (*convolve_feature)(const Convolve&);
    // The gradient of that input; `layer` has the weight as it is.
    void (*feature_gradient)(const InputGradient&);
    void (*refine_windows)(const RefineWindows&);
    void (*convolve)(const Convolve&);
    void (*before_relu)(const BeforeRelu&);
    void (*input_gradient)(const InputGradient&);
    void (*weight_gradient)(const WeightGradient&);
};

// Those of the environment variable SHARPMASK_CPU_ISA, else of the best instruction set of this processor.
// Throws std::invalid_argument where the variable names none that was compiled and that runs here.
const Kernels& kernels();

// The instruction sets that run here, best last, separated by commas.
std::string usable_isas();

}  // namespace sharpmask
