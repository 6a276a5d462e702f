// mify._core.kernels: the CPU kernels over raw pointers. The Python side (kernels/*/X_cpu.py) has checked dtype, shape,
// device and strides; here is the GIL release and nothing else.
#include <pybind11/pybind11.h>

#include "attention/gqa_cpu.hpp"
#include "attention/gqa_paged_cpu.hpp"
#include "fused/rows.hpp"

namespace py = pybind11;

namespace {

// (pointer, stride) and (pointer, token stride, head stride), strides in elements; a pointer may be 0 where allowed.
using RowsArg = std::tuple<uintptr_t, ptrdiff_t>;
using HeadsArg = std::tuple<uintptr_t, ptrdiff_t, ptrdiff_t>;
// (pointer, page stride, slot stride, head stride).
using CacheArg = std::tuple<uintptr_t, ptrdiff_t, ptrdiff_t, ptrdiff_t>;

float* floats(uintptr_t at) {
  return reinterpret_cast<float*>(at);
}
mify::Rows rows(const RowsArg& arg) {
  return {floats(std::get<0>(arg)), std::get<1>(arg)};
}
mify::Heads heads(const HeadsArg& arg) {
  return {floats(std::get<0>(arg)), std::get<1>(arg), std::get<2>(arg)};
}
mify::PagedCache cache(const CacheArg& arg) {
  return {reinterpret_cast<const void*>(std::get<0>(arg)), std::get<1>(arg), std::get<2>(arg), std::get<3>(arg)};
}

}  // namespace

void bind_kernels(py::module_& m) {
  const auto release = py::call_guard<py::gil_scoped_release>();
  m.def(
      "gqa_forward",
      [](HeadsArg q, HeadsArg k, HeadsArg v, HeadsArg out, uintptr_t lse, uintptr_t bounds, int64_t documents,
         std::tuple<int, int, int> shape, bool causal, int64_t window, float scale, unsigned threads) {
        mify::GqaProblem problem{};
        problem.q = heads(q), problem.k = heads(k), problem.v = heads(v), problem.out = heads(out);
        problem.lse = floats(lse);
        problem.bounds = reinterpret_cast<const int32_t*>(bounds), problem.documents = documents;
        std::tie(problem.query_heads, problem.kv_heads, problem.head_dim) = shape;
        problem.causal = causal, problem.window = window, problem.scale = scale;
        mify::gqa_forward(problem, threads);
      },
      release);
  m.def(
      "gqa_backward",
      [](HeadsArg grad, HeadsArg q, HeadsArg k, HeadsArg v, uintptr_t lse, HeadsArg dq, HeadsArg dk, HeadsArg dv,
         uintptr_t bounds, int64_t documents, std::tuple<int, int, int> shape, bool causal, int64_t window, float scale,
         unsigned threads) {
        mify::GqaProblem problem{};
        problem.grad = heads(grad), problem.q = heads(q), problem.k = heads(k), problem.v = heads(v);
        problem.dq = heads(dq), problem.dk = heads(dk), problem.dv = heads(dv);
        problem.lse = floats(lse);
        problem.bounds = reinterpret_cast<const int32_t*>(bounds), problem.documents = documents;
        std::tie(problem.query_heads, problem.kv_heads, problem.head_dim) = shape;
        problem.causal = causal, problem.window = window, problem.scale = scale;
        mify::gqa_backward(problem, threads);
      },
      release);
  m.def(
      "gqa_paged",
      [](HeadsArg q, HeadsArg out, CacheArg keys, CacheArg values, bool fp8, uintptr_t bounds, uintptr_t lengths,
         std::tuple<uintptr_t, ptrdiff_t> table, std::tuple<int64_t, int64_t, int64_t, int64_t> counts,
         std::tuple<int, int, int> shape, uintptr_t key_scale, uintptr_t value_scale, float scale, unsigned threads) {
        mify::PagedProblem problem{};
        problem.q = heads(q), problem.out = heads(out);
        problem.keys = cache(keys), problem.values = cache(values), problem.fp8 = fp8;
        problem.bounds = reinterpret_cast<const int32_t*>(bounds);
        problem.lengths = reinterpret_cast<const int32_t*>(lengths);
        problem.table = reinterpret_cast<const int32_t*>(std::get<0>(table));
        problem.table_stride = std::get<1>(table);
        std::tie(problem.sequences, problem.pages, problem.page_size, problem.columns) = counts;
        std::tie(problem.query_heads, problem.kv_heads, problem.head_dim) = shape;
        problem.key_scale = floats(key_scale), problem.value_scale = floats(value_scale), problem.scale = scale;
        mify::gqa_paged(problem, threads);
      },
      release);
  m.def(
      "norm_forward",
      [](RowsArg x, RowsArg residual, RowsArg total, uintptr_t weight, RowsArg y, uintptr_t inverse, float eps,
         int64_t count, int64_t size, unsigned threads) {
        mify::norm_forward({rows(x), rows(residual), rows(total), floats(weight), rows(y), floats(inverse), eps, size},
                           count, threads);
      },
      release);
  m.def(
      "norm_backward",
      [](RowsArg grad, RowsArg grad_total, RowsArg x, uintptr_t weight, uintptr_t inverse, RowsArg dx,
         uintptr_t dweight, int64_t count, int64_t size, unsigned threads) {
        mify::norm_backward({rows(grad), rows(grad_total), rows(x), floats(weight), floats(inverse), rows(dx), size},
                            count, floats(dweight), threads);
      },
      release);
  m.def(
      "glu_forward",
      [](RowsArg gate, RowsArg up, RowsArg y, int64_t count, int64_t size, unsigned threads) {
        mify::glu_forward({rows(gate), rows(up), rows(y), {}, {}, size}, count, threads);
      },
      release);
  m.def(
      "glu_backward",
      [](RowsArg grad, RowsArg gate, RowsArg up, RowsArg dgate, RowsArg dup, int64_t count, int64_t size,
         unsigned threads) {
        mify::glu_backward({rows(gate), rows(up), rows(grad), rows(dgate), rows(dup), size}, count, threads);
      },
      release);
  m.def(
      "rotary",
      [](HeadsArg x, uintptr_t y, uintptr_t cos, uintptr_t sin, bool inverse, int64_t tokens, int64_t head_count,
         int64_t half, unsigned threads) {
        mify::rotary({floats(std::get<0>(x)), std::get<1>(x), std::get<2>(x), floats(y), head_count, half, floats(cos),
                      floats(sin), inverse},
                     tokens, threads);
      },
      release);
  m.def(
      "softmax_loss",
      [](RowsArg logits, uintptr_t labels, uintptr_t loss, int64_t count, int64_t classes, float z_loss,
         float smoothing, bool gradient, unsigned threads) {
        mify::softmax_loss({rows(logits), reinterpret_cast<const int64_t*>(labels), floats(loss), classes, z_loss,
                            smoothing, gradient},
                           count, threads);
      },
      release);
}
