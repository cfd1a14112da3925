// For bench/roofline.py: as many multiply-adds as one core does, on sums that stay in registers.
#include "cpu/simd/vector.h"

namespace {

using namespace sharpmask::SHARPMASK_ISA;

// Enough independent sums to hide a multiply-add's latency; two registers hold the constants.
constexpr int sums = vector_registers * 3 / 4;

}  // namespace

extern "C" {

// Floating-point operations of one round.
int64_t operations() { return 2 * sums * lanes<float>; }

float multiply_adds(int64_t rounds) {
    // Below 1 and above 0: all sums approach 1, so none overflows or becomes subnormal.
    const auto factor = splat(0.5f), term = splat(0.5f);
    Vector<float> all[sums];
    for (auto& sum : all) sum = splat(0.25f);
    for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 32
        for (int i = 0; i < sums; ++i) all[i] = fma(all[i], factor, term);
    }
    float total = 0;
    for (auto& sum : all) total += sum[0];
    return total;
}
}
