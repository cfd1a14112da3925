#include "conv3x3.h"

namespace sharpmask::SHARPMASK_ISA {

template class Conv3x3<float>;
#ifdef SHARPMASK_FP64
template class Conv3x3<double>;
#endif

}  // namespace sharpmask::SHARPMASK_ISA
