// mify._core.kernels: the gather-and-patch pass on the host, over raw pointers that kernels/packing has checked.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "fim_pack_params.hpp"

namespace py = pybind11;

void bind_fim_pack(py::module_& m) {
  m.def(
      "unpack_rows",
      [](unsigned threads, const py::kwargs& arguments) {
        int token_bytes = 0;
        const mify::FimPackParams params = fim_pack_params(arguments, false, token_bytes);
        const py::gil_scoped_release release;
        mify::unpack_rows(params, token_bytes, threads);
      },
      py::arg("threads"), "Packed rows widened; see csrc/packing/fim_pack.hpp. Raises ValueError.");
  m.def(
      "pack_spans",
      [](unsigned threads, const py::kwargs& arguments) {
        int token_bytes = 0;
        const mify::FimPackParams params = fim_pack_params(arguments, true, token_bytes);
        const py::gil_scoped_release release;
        mify::pack_spans(params, token_bytes, threads);
      },
      py::arg("threads"), "Rows gathered from a buffer; see csrc/packing/fim_pack.hpp. Raises ValueError.");
}
