// mify._core.quantization: weights to 8 bits, over raw pointers that mify/quantization has checked.
#include <pybind11/pybind11.h>

#include "quantize/fp8_rows.hpp"

namespace py = pybind11;

void bind_quantize(py::module_& m) {
  m.def(
      "fp8_rows",
      [](uintptr_t values, bool bf16, int64_t rows, int64_t columns, uintptr_t codes, uintptr_t scales,
         unsigned threads) {
        return mify::fp8_rows({reinterpret_cast<const void*>(values), bf16, columns, reinterpret_cast<uint8_t*>(codes),
                               reinterpret_cast<uint16_t*>(scales)},
                              rows, threads);
      },
      py::call_guard<py::gil_scoped_release>(),
      "Rows to E4M3 with a bf16 scale each; see csrc/quantize/fp8_rows.hpp. False where a value is not finite.");
}
