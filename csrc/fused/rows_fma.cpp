// The AVX2 and FMA code of rows.hpp; runs only where cpu_features().fma holds.
#include "fused/rows_impl.hpp"

namespace mify {
extern const RowKernels kRowsFma;
const RowKernels kRowsFma = kRowKernels;
}  // namespace mify
