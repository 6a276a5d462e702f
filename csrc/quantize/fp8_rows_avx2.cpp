// fp8_rows compiled for AVX2; runs only where cpu_features().avx2 holds. For AVX-512 it was as fast: 15 ms against 17
// for 6912 x 2560 bf16 (34 with SSE2).
#include "quantize/fp8_rows_impl.hpp"

namespace mify {

extern const Fp8RowsKernel kFp8RowsAvx2;
const Fp8RowsKernel kFp8RowsAvx2 = fp8_rows_kernel;

}  // namespace mify
