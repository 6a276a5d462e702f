// mify._cuda: RMSNorm that writes FP8 in two layouts.
#include <pybind11/pybind11.h>

#include <string>

#include "cuda_checks.hpp"
#include "norm/norm_fp8.hpp"

namespace py = pybind11;
using namespace cuda_checks;

namespace {

void norm_fp8(Address x, Address residual, Address total, Address weight, Address inverse, Address data, Address scale,
              Address data_t, Address scale_t, Address delayed, Address largest, int64_t x_row, int64_t residual_row,
              int64_t rows, int64_t size, bool weight_is_float, double eps, Address stream) {
  between(rows, 1, int64_t{1} << 40, "rows");
  between(size, 128, int64_t{1} << 30, "size");
  require(size % 128 == 0, "size is " + std::to_string(size) + "; it must be a multiple of 128");
  mify::NormFp8Params p;
  p.cluster = mify::norm_fp8_cluster(size);
  require(p.cluster > 0, "size is " + std::to_string(size) + "; it must be at most " +
                             std::to_string(128 * mify::kNormFp8MostHeld * mify::kNormFp8MostCluster));
  p.rows = rows, p.rows_padded = (rows + 127) / 128 * 128, p.size = static_cast<int32_t>(size);
  between(p.rows_padded / 128 * p.cluster, 1, INT32_MAX, "blocks");
  p.x_row = x_row, p.residual_row = residual_row;
  multiple(x_row, 8, "x_row"), multiple(residual_row, 8, "residual_row");
  p.weight_is_float = weight_is_float;
  p.eps = static_cast<float>(eps);
  p.x = pointer<const void>(x, "x", 16);
  if (residual != 0) {
    p.residual = pointer<const void>(residual, "residual", 16);
    p.total = pointer<void>(total, "total", 16);
  }
  p.weight = pointer<const void>(weight, "weight", 16);
  p.inverse = pointer<float>(inverse, "inverse", 4);
  p.data = pointer<uint8_t>(data, "data", 8), p.data_t = pointer<uint8_t>(data_t, "data_t", 16);
  if (delayed != 0) {
    p.delayed = pointer<const float>(delayed, "delayed", 4), p.largest = pointer<float>(largest, "largest", 4);
  } else {
    p.scale = pointer<float>(scale, "scale", 4), p.scale_t = pointer<float>(scale_t, "scale_t", 4);
  }
  int code;
  {
    py::gil_scoped_release release;
    code = mify::launch_norm_fp8(p, reinterpret_cast<void*>(stream));
  }
  succeeded(code, "the launch of norm_fp8");
}

}  // namespace

void bind_norm_fp8(py::module_& m) {
  m.def("norm_fp8", &norm_fp8, py::kw_only(), py::arg("x"), py::arg("residual"), py::arg("total"), py::arg("weight"),
        py::arg("inverse"), py::arg("data"), py::arg("scale"), py::arg("data_t"), py::arg("scale_t"),
        py::arg("delayed"), py::arg("largest"), py::arg("x_row"), py::arg("residual_row"), py::arg("rows"),
        py::arg("size"), py::arg("weight_is_float"), py::arg("eps"), py::arg("stream"),
        "RMSNorm to FP8 in two layouts; see csrc/norm/norm_fp8.hpp. Raises ValueError for arguments that cannot be,\n"
        "before anything is launched, and RuntimeError where the launch fails.");
  m.def(
      "norm_fp8_cluster", [](int64_t size) { return size % 128 == 0 ? mify::norm_fp8_cluster(size) : 0; },
      py::arg("size"), "Thread blocks that share 128 rows of so many features; 0 where the kernel does not take them.");
  m.def(
      "norm_fp8_shared_bytes",
      [](int64_t size) { return mify::norm_fp8_shared_bytes(size, mify::norm_fp8_cluster(size)); }, py::arg("size"),
      "Dynamic shared memory of a thread block for so many features, in bytes.");
}
