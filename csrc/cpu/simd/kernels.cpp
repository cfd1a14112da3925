#include "../kernels.h"

#define SHARPMASK_NAME(x) SHARPMASK_QUOTE(x)
#define SHARPMASK_QUOTE(x) #x

namespace sharpmask::SHARPMASK_ISA {

std::unique_ptr<ColumnSampler> column_sampler(DType dtype, const Map& logits, double limit);
void convolve_feature(const Convolve& arguments);
void feature_gradient(const InputGradient& arguments);
void refine_windows(const RefineWindows& arguments);
void convolve(const Convolve& arguments);
void before_relu(const BeforeRelu& arguments);
void input_gradient(const InputGradient& arguments);
void weight_gradient(const WeightGradient& arguments);

extern const Kernels kernels{SHARPMASK_NAME(SHARPMASK_ISA),
                             column_sampler,
                             convolve_feature,
                             feature_gradient,
                             refine_windows,
                             convolve,
                             before_relu,
                             input_gradient,
                             weight_gradient};

}  // namespace sharpmask::SHARPMASK_ISA
