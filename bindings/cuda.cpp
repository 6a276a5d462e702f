// mify._cuda: CUDA kernels behind raw pointers and a stream. No torch header, and importable without a driver.
#include <pybind11/pybind11.h>

#include <string>

#include "attention/gqa_decode.hpp"
#include "cuda_checks.hpp"

namespace py = pybind11;

void bind_fim_pack(py::module_& m);
void bind_norm_fp8(py::module_& m);

namespace {

using namespace cuda_checks;

mify::KvType kv_type(const std::string& name) {
  require(name == "bf16" || name == "fp8_e4m3", "kv_type is '" + name + "'; it must be 'bf16' or 'fp8_e4m3'");
  return name == "bf16" ? mify::KvType::bf16 : mify::KvType::fp8_e4m3;
}

void gqa_decode(Address q, Address out, Address k, Address v, Address lengths, Address page_table, Address k_scale,
                Address v_scale, Address partials, Address arrivals, const std::string& cache_type, int head_dim,
                int64_t batch, int64_t kv_heads, int64_t group, int64_t num_splits, int64_t num_pages,
                int64_t page_size, int64_t table_columns, int64_t table_stride, py::tuple q_strides,
                py::tuple out_strides, py::tuple k_strides, py::tuple v_strides, double scale, Address stream) {
  const mify::KvType type = kv_type(cache_type);
  const int64_t unit = type == mify::KvType::bf16 ? 8 : 16;
  require(head_dim == 64 || head_dim == 128, "head_dim is " + std::to_string(head_dim) + "; it must be 64 or 128");
  between(group, 1, 16, "group");
  between(kv_heads, 1, 1 << 16, "kv_heads");
  between(num_splits, 1, 128, "num_splits");
  between(batch, 0, 1 << 24, "batch");
  between(num_pages, 1, INT32_MAX, "num_pages");
  between(batch * kv_heads * num_splits, 0, INT32_MAX, "batch * kv_heads * num_splits");
  require(q_strides.size() == 2 && out_strides.size() == 2, "q_strides and out_strides are (sequence, head)");
  require(k_strides.size() == 3 && v_strides.size() == 3, "k_strides and v_strides are (page, slot, head)");

  mify::GqaDecodeParams p;
  p.page_shift = 31;
  p.table_columns = 1;
  if (page_table != 0) {
    require(page_size >= 16 && page_size <= (1 << 30) && (page_size & (page_size - 1)) == 0,
            "page_size is " + std::to_string(page_size) + "; it must be a power of two of at least 16");
    between(table_columns, 1, (1 << 30) / page_size, "table_columns");
    p.page_table = pointer<const int32_t>(page_table, "page_table", 4);
    p.page_shift = 0;
    while ((int64_t{1} << p.page_shift) < page_size) ++p.page_shift;
    p.table_columns = static_cast<int32_t>(table_columns);
    p.table_stride = table_stride;
    p.capacity = static_cast<int32_t>(page_size * table_columns);
  } else {
    between(page_size, 1, 1 << 30, "page_size");
    require(num_pages >= batch, "without a page table the cache needs one page a sequence");
    p.capacity = static_cast<int32_t>(page_size);
  }
  p.q_batch_stride = q_strides[0].cast<int64_t>(), p.q_head_stride = q_strides[1].cast<int64_t>();
  p.out_batch_stride = out_strides[0].cast<int64_t>(), p.out_head_stride = out_strides[1].cast<int64_t>();
  p.k_page_stride = k_strides[0].cast<int64_t>(), p.k_slot_stride = k_strides[1].cast<int64_t>();
  p.k_head_stride = k_strides[2].cast<int64_t>();
  p.v_page_stride = v_strides[0].cast<int64_t>(), p.v_slot_stride = v_strides[1].cast<int64_t>();
  p.v_head_stride = v_strides[2].cast<int64_t>();
  multiple(p.q_batch_stride, 8, "a stride of q"), multiple(p.q_head_stride, 8, "a stride of q");
  multiple(p.out_batch_stride, 4, "a stride of out"), multiple(p.out_head_stride, 4, "a stride of out");
  for (const int64_t stride : {p.k_page_stride, p.k_slot_stride, p.k_head_stride})
    multiple(stride, unit, "a stride of k");
  for (const int64_t stride : {p.v_page_stride, p.v_slot_stride, p.v_head_stride})
    multiple(stride, unit, "a stride of v");
  p.batch = static_cast<int32_t>(batch), p.kv_heads = static_cast<int32_t>(kv_heads);
  p.group = static_cast<int32_t>(group), p.num_splits = static_cast<int32_t>(num_splits);
  p.num_pages = static_cast<int32_t>(num_pages);
  p.scale_log2 = static_cast<float>(scale * 1.4426950408889634);
  if (batch == 0) return;

  p.q = pointer<const void>(q, "q", 16), p.out = pointer<void>(out, "out", 8);
  p.k = pointer<const void>(k, "k", 16), p.v = pointer<const void>(v, "v", 16);
  p.lengths = pointer<const int32_t>(lengths, "lengths", 4);
  if (k_scale != 0) p.k_scale = pointer<const float>(k_scale, "k_scale", 4);
  if (v_scale != 0) p.v_scale = pointer<const float>(v_scale, "v_scale", 4);
  if (num_splits > 1) {
    p.partials = pointer<float>(partials, "partials", 16);
    p.arrivals = pointer<uint32_t>(arrivals, "arrivals", 4);
  }
  int code;
  {
    py::gil_scoped_release release;
    code = mify::launch_gqa_decode(p, head_dim, type, reinterpret_cast<void*>(stream));
  }
  succeeded(code, "the launch of gqa_decode");
}

py::dict gqa_decode_info(int head_dim, const std::string& cache_type, int group) {
  mify::KernelInfo info;
  succeeded(mify::gqa_decode_info(head_dim, kv_type(cache_type), group, &info), "asking for gqa_decode");
  py::dict out;
  out["registers"] = info.registers;
  out["local_bytes"] = info.local_bytes;
  out["shared_bytes"] = info.shared_bytes;
  out["threads"] = info.threads;
  return out;
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "The CUDA kernels of mify. Pointers are device addresses; `stream` is a cudaStream_t as an integer.";
  m.attr("runtime_version") = CUDART_VERSION;
  m.def("gqa_decode", &gqa_decode, py::kw_only(), py::arg("q"), py::arg("out"), py::arg("k"), py::arg("v"),
        py::arg("lengths"), py::arg("page_table"), py::arg("k_scale"), py::arg("v_scale"), py::arg("partials"),
        py::arg("arrivals"), py::arg("kv_type"), py::arg("head_dim"), py::arg("batch"), py::arg("kv_heads"),
        py::arg("group"), py::arg("num_splits"), py::arg("num_pages"), py::arg("page_size"), py::arg("table_columns"),
        py::arg("table_stride"), py::arg("q_strides"), py::arg("out_strides"), py::arg("k_strides"),
        py::arg("v_strides"), py::arg("scale"), py::arg("stream"),
        "Decode attention; see csrc/attention/gqa_decode.hpp. Raises ValueError for arguments that cannot be, before\n"
        "anything is launched, and RuntimeError where the launch fails.");
  m.def(
      "gqa_decode_shared_bytes",
      [](int head_dim, const std::string& cache_type, int group) {
        return mify::gqa_decode_shared_bytes(head_dim, kv_type(cache_type), group);
      },
      py::arg("head_dim"), py::arg("kv_type"), py::arg("group"),
      "Dynamic shared memory of the kernel for these figures, in bytes; 0 where there is none. Asks no device.");
  m.def("gqa_decode_info", &gqa_decode_info, py::arg("head_dim"), py::arg("kv_type"), py::arg("group"),
        "Registers, local bytes, shared bytes and threads of the kernel for these figures, on the current device.");
  bind_fim_pack(m);
  bind_norm_fp8(m);
}
