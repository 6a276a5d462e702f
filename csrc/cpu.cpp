#include "cpu.hpp"

#include <cstdlib>
#include <string_view>

namespace mify {
namespace {

bool disabled(std::string_view feature) {
  const char* list = std::getenv("MIFY_CPU_DISABLE");
  if (list == nullptr) return false;
  std::string_view rest(list);
  while (!rest.empty()) {
    const size_t comma = rest.find(',');
    if (rest.substr(0, comma) == feature) return true;
    if (comma == std::string_view::npos) break;
    rest.remove_prefix(comma + 1);
  }
  return false;
}

CpuFeatures detect() {
  CpuFeatures found;
#if defined(MIFY_X86)
  __builtin_cpu_init();
  found.avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
               __builtin_cpu_supports("popcnt") && !disabled("avx2");
  found.fma = found.avx2 && __builtin_cpu_supports("fma") && !disabled("fma");
  found.avx512 = found.avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && !disabled("avx512");
  // __builtin_cpu_supports("sha") is missing from the compilers we support: CPUID leaf 7, EBX bit 29.
  unsigned eax = 7, ebx = 0, ecx = 0, edx = 0;
  __asm__ volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
  found.sha = (ebx & (1u << 29)) != 0 && __builtin_cpu_supports("sse4.1") && !disabled("sha");
#endif
  return found;
}

}  // namespace

const CpuFeatures& cpu_features() {
  static const CpuFeatures features = detect();
  return features;
}

}  // namespace mify
