#include "conv3x3.h"

namespace sharpmask::SHARPMASK_ISA {

template class Conv3x3<float>;
template class Conv3x3<double>;

}  // namespace sharpmask::SHARPMASK_ISA
