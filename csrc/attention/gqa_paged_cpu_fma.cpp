// The AVX2 and FMA code of gqa_paged_cpu.hpp; runs only where cpu_features().fma holds.
#include "attention/gqa_paged_cpu_impl.hpp"

namespace mify {
extern const PagedKernels kPagedFma;
const PagedKernels kPagedFma = {run_paged};
}  // namespace mify
