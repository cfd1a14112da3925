#include "kernels.h"

#define SHARPMASK_NAME(x) SHARPMASK_QUOTE(x)
#define SHARPMASK_QUOTE(x) #x

namespace sharpmask::SHARPMASK_ISA {

extern const Kernels kernels{SHARPMASK_NAME(SHARPMASK_ISA),
                             convolve_upsample,
                             relu_upsample,
                             upsample_gradient,
                             input_gradient,
                             weight_gradient,
                             feature_forward,
                             feature_gradient,
                             refine_windows,
                             horizontal,
                             wide_forward,
                             wide_gradient,
                             wide_input_gradient,
                             upsampled_gradient,
                             inverted_residual,
                             upsample_add,
                             join_phases,
                             column_sampler};

}  // namespace sharpmask::SHARPMASK_ISA
