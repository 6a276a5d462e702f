// mify._core: argument checks, GIL release and nothing else. The work is in csrc.
#include <pybind11/pybind11.h>

#include "cpu.hpp"

namespace py = pybind11;

void bind_fim_pack(py::module_& m);
void bind_kernels(py::module_& m);
void bind_minhash(py::module_& m);
void bind_packing(py::module_& m);
void bind_quantize(py::module_& m);
void bind_runs(py::module_& m);

PYBIND11_MODULE(_core, m) {
  m.doc() = "The C++ core of mify: MinHash and near-duplicates, FIM and packing.";
  m.attr("__version__") = MIFY_VERSION;
  m.def(
      "cpu_features",
      [] {
        const mify::CpuFeatures& found = mify::cpu_features();
        py::dict out;
        out["avx2"] = found.avx2;
        out["avx512"] = found.avx512;
        out["sha"] = found.sha;
        return out;
      },
      "The instruction sets that run-time dispatch will use on this CPU.");
  py::module_ kernels = m.def_submodule("kernels", "The CPU kernels, over raw pointers: see mify.kernels.");
  bind_kernels(kernels);
  bind_fim_pack(kernels);
  py::module_ minhash = m.def_submodule("minhash", "Shingles, signatures, LSH, clusters, decontamination.");
  bind_minhash(minhash);
  bind_runs(minhash);
  py::module_ packing = m.def_submodule("packing", "Counter-based RNG, FIM plans, packing plans and the gather pass.");
  bind_packing(packing);
  py::module_ quantization = m.def_submodule("quantization", "Weights to 8 bits.");
  bind_quantize(quantization);
}
