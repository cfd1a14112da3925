#include "maps.h"

namespace sharpmask::SHARPMASK_ISA {

template void read_typed(const float*, const Strides&, int64_t, int64_t, float*, int64_t);
template void read_row<float>(const TypedMap&, int64_t, int64_t, int64_t, int64_t, int64_t, float*, int64_t);
template void write_row<float>(const TypedMap&, int64_t, int64_t, int64_t, int64_t, const float*, int64_t);
template void write_typed(float*, const Strides&, int64_t, int64_t, const float*, int64_t);
template void write_typed(Half*, const Strides&, int64_t, int64_t, const float*, int64_t);
template void write_typed(BFloat16*, const Strides&, int64_t, int64_t, const float*, int64_t);
#ifdef SHARPMASK_FP64
template void read_typed(const double*, const Strides&, int64_t, int64_t, double*, int64_t);
template void read_row<double>(const TypedMap&, int64_t, int64_t, int64_t, int64_t, int64_t, double*,
                               int64_t);
template void write_row<double>(const TypedMap&, int64_t, int64_t, int64_t, int64_t, const double*, int64_t);
template void write_typed(double*, const Strides&, int64_t, int64_t, const double*, int64_t);
#endif

}  // namespace sharpmask::SHARPMASK_ISA
