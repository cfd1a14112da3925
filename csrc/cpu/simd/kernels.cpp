#include "../kernels.h"

#define SHARPMASK_NAME(x) SHARPMASK_QUOTE(x)
#define SHARPMASK_QUOTE(x) #x

namespace sharpmask::SHARPMASK_ISA {

void refine_windows(const RefineWindows& arguments);

extern const Kernels kernels{SHARPMASK_NAME(SHARPMASK_ISA), refine_windows};

}  // namespace sharpmask::SHARPMASK_ISA
