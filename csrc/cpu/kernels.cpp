#include "kernels.h"

#include <cstdlib>
#include <stdexcept>
#include <vector>

namespace sharpmask {

// What every processor of its kind can run.
#ifdef SHARPMASK_NEON
namespace neon {
extern const Kernels kernels;
}
namespace least = neon;
#else
namespace baseline {
extern const Kernels kernels;
}
namespace least = baseline;
#endif
#ifdef SHARPMASK_AVX2
namespace avx2 {
extern const Kernels kernels;
}
#endif
#ifdef SHARPMASK_AVX512
namespace avx512 {
extern const Kernels kernels;
}
#endif

namespace {

std::vector<const Kernels*> usable() {
    std::vector<const Kernels*> found{&least::kernels};
#ifdef SHARPMASK_AVX2
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&avx2::kernels);
#endif
#ifdef SHARPMASK_AVX512
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("fma")) {
        found.push_back(&avx512::kernels);
    }
#endif
    return found;
}

const Kernels& choose() {
    const std::vector<const Kernels*> found = usable();
    const char* wanted = std::getenv("SHARPMASK_CPU_ISA");
    if (wanted == nullptr || *wanted == '\0') return *found.back();
    for (const Kernels* kernels : found) {
        if (std::string(kernels->isa) == wanted) return *kernels;
    }
    throw std::invalid_argument("SHARPMASK_CPU_ISA must be one of those that run here (" + usable_isas() +
                                "), got '" + wanted + "'");
}

}  // namespace

const Kernels& kernels() {
    static const Kernels& chosen = choose();
    return chosen;
}

const Kernels& kernels(DType dtype) { return dtype == DType::float64 ? least::kernels : kernels(); }

std::string usable_isas() {
    std::string names;
    for (const Kernels* kernels : usable()) names += (names.empty() ? "" : ", ") + std::string(kernels->isa);
    return names;
}

}  // namespace sharpmask
