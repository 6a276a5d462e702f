#include "packing/characters.hpp"

#include <cstring>
#include <iterator>

namespace mify {
namespace {

constexpr uint32_t kRuns[] = {
#include "packing/character_classes.inc"
};

}  // namespace

const CharacterClasses& CharacterClasses::get() {
  static const CharacterClasses classes;
  return classes;
}

CharacterClasses::CharacterClasses() {
  std::vector<uint8_t> all(0x110000);
  for (size_t run = 0; run < std::size(kRuns); ++run) {
    const size_t last = run + 1 < std::size(kRuns) ? kRuns[run + 1] >> 2 : all.size();
    for (size_t code = kRuns[run] >> 2; code < last; ++code) all[code] = kRuns[run] & 3;
  }
  bytes_.fill(kNotAscii);
  std::memcpy(bytes_.data(), all.data(), 128);
  for (size_t block = 0; block < block_of_.size(); ++block) {
    const uint8_t* const here = all.data() + block * 256;
    size_t found = 0;
    while (found * 256 < blocks_.size() && std::memcmp(blocks_.data() + found * 256, here, 256) != 0) ++found;
    if (found * 256 == blocks_.size()) blocks_.insert(blocks_.end(), here, here + 256);
    block_of_[block] = static_cast<uint16_t>(found);
  }
}

}  // namespace mify
