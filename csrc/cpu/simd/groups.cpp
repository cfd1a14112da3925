#include "groups.h"

namespace sharpmask::SHARPMASK_ISA {

template void multiply_row(int64_t, const Row<float>*, const Matrix<float>&, Clip, const Row<float>&);
#ifdef SHARPMASK_FP64
template void multiply_row(int64_t, const Row<double>*, const Matrix<double>&, Clip, const Row<double>&);
#endif

}  // namespace sharpmask::SHARPMASK_ISA
