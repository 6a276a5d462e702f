// mify._cuda: CUDA kernels behind raw pointers and a stream. No torch header, and importable without a driver.
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>

namespace py = pybind11;

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "The CUDA kernels of mify. Pointers are device addresses; `stream` is a cudaStream_t as an integer.";
  m.attr("runtime_version") = CUDART_VERSION;
}
