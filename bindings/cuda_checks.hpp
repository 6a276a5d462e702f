// What the bindings of mify._cuda check arguments with; std::invalid_argument becomes ValueError.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace cuda_checks {

using Address = uintptr_t;

inline void require(bool condition, const std::string& what) {
  if (!condition) throw std::invalid_argument(what);
}

template <class T>
T* pointer(Address address, const char* name, int alignment) {
  require(address != 0, std::string(name) + " is a null pointer");
  require(address % alignment == 0, std::string(name) + " is not aligned to " + std::to_string(alignment) +
                                        " bytes; copy it to a tensor of its own");
  return reinterpret_cast<T*>(address);
}

inline void multiple(int64_t value, int64_t of, const char* name) {
  require(value % of == 0, std::string(name) + " is " + std::to_string(value) + "; it must be a multiple of " +
                               std::to_string(of) + " elements, so that rows begin at 16 bytes");
}

inline void between(int64_t value, int64_t least, int64_t most, const char* name) {
  require(value >= least && value <= most, std::string(name) + " is " + std::to_string(value) + "; it must be " +
                                               std::to_string(least) + " to " + std::to_string(most));
}

inline void succeeded(int code, const char* what) {
  if (code == 0) return;
  const char* text = cudaGetErrorString(static_cast<cudaError_t>(code));
  throw std::runtime_error(std::string(what) + " failed: " + text);
}

}  // namespace cuda_checks
