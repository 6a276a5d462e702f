// mify._cuda: the gather-and-patch pass on a device. Everything but the sizes is trusted: see kernels/packing.
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>

#include "fim_pack_params.hpp"

namespace py = pybind11;

namespace {

void succeeded(int code, const char* what) {
  if (code == 0) return;
  const char* text = cudaGetErrorString(static_cast<cudaError_t>(code));
  throw std::runtime_error(std::string("the launch of ") + what + " failed: " + text);
}

}  // namespace

void bind_fim_pack(py::module_& m) {
  m.def(
      "unpack_rows",
      [](uintptr_t stream, const py::kwargs& arguments) {
        int token_bytes = 0, code = 0;
        const mify::FimPackParams params = fim_pack_params(arguments, false, token_bytes);
        {
          const py::gil_scoped_release release;
          code = mify::launch_unpack_rows(params, token_bytes, reinterpret_cast<void*>(stream));
        }
        succeeded(code, "unpack_rows");
      },
      py::arg("stream"), "Packed rows widened; see csrc/packing/fim_pack.hpp. Raises ValueError, RuntimeError.");
  m.def(
      "pack_spans",
      [](uintptr_t stream, const py::kwargs& arguments) {
        int token_bytes = 0, code = 0;
        const mify::FimPackParams params = fim_pack_params(arguments, true, token_bytes);
        {
          const py::gil_scoped_release release;
          code = mify::launch_pack_spans(params, token_bytes, reinterpret_cast<void*>(stream));
        }
        succeeded(code, "pack_spans");
      },
      py::arg("stream"),
      "Rows gathered from a buffer; see csrc/packing/fim_pack.hpp. Raises ValueError, RuntimeError.");
}
