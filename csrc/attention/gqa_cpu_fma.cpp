// The AVX2 and FMA code of gqa_cpu.hpp; runs only where cpu_features().fma holds.
#include "attention/gqa_cpu_impl.hpp"

namespace mify {
extern const GqaKernels kGqaFma;
const GqaKernels kGqaFma = {scratch_floats, forward, backward};
}  // namespace mify
