#include "text/order.hpp"

#include <algorithm>
#include <cstring>

namespace mify {
namespace {

struct Key {
  uint64_t prefix;  // the first eight bytes as a big-endian number: most comparisons end here
  int64_t index;
};

uint64_t prefix_of(std::string_view text) {
  uint8_t bytes[8] = {};
  std::memcpy(bytes, text.data(), std::min<size_t>(text.size(), 8));
  uint64_t prefix = 0;
  for (const uint8_t byte : bytes) prefix = prefix << 8 | byte;
  return prefix;
}

}  // namespace

Ascending ascending(std::span<const std::string_view> texts) {
  std::vector<Key> keys(texts.size());
  for (size_t i = 0; i < texts.size(); ++i) keys[i] = {prefix_of(texts[i]), static_cast<int64_t>(i)};
  std::sort(keys.begin(), keys.end(), [&texts](const Key& x, const Key& y) {
    if (x.prefix != y.prefix) return x.prefix < y.prefix;
    const int order = texts[static_cast<size_t>(x.index)].compare(texts[static_cast<size_t>(y.index)]);
    return order != 0 ? order < 0 : x.index < y.index;
  });
  Ascending out;
  out.order.resize(keys.size());
  for (size_t i = 0; i < keys.size(); ++i) out.order[i] = keys[i].index;
  for (size_t i = 0; i + 1 < keys.size() && out.repeated < 0; ++i) {
    const size_t x = static_cast<size_t>(keys[i].index), y = static_cast<size_t>(keys[i + 1].index);
    if (keys[i].prefix == keys[i + 1].prefix && texts[x] == texts[y]) out.repeated = static_cast<int64_t>(i);
  }
  return out;
}

}  // namespace mify
