// Texts in the order of their bytes, which for UTF-8 is that of their code points.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace mify {

struct Ascending {
  std::vector<int64_t> order;  // indices of the texts; equal texts stand in the order of the input
  int64_t repeated = -1;       // the first place in `order` whose text comes again in the next one
};

Ascending ascending(std::span<const std::string_view> texts);

}  // namespace mify
