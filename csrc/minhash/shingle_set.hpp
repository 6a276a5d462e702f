// Sets of shingle hashes and their exact Jaccard similarity.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include "minhash/shingles.hpp"

namespace mify {

// An open hash table of 64-bit values that is filled, asked and emptied many times.
class HashSet64 {
 public:
  // Empties the set and makes room for `count` values.
  void reset(size_t count) {
    const size_t slots = std::bit_ceil(2 * count + 2);
    shift_ = 64 - std::countr_zero(slots);
    mask_ = slots - 1;
    slots_.assign(slots, 0);
    has_zero_ = false;
  }
  // Returns whether the value is new.
  bool insert(uint64_t value) {
    if (value == 0) return !std::exchange(has_zero_, true);
    for (size_t slot = place(value);; slot = (slot + 1) & mask_) {
      if (slots_[slot] == value) return false;
      if (slots_[slot] == 0) {
        slots_[slot] = value;
        return true;
      }
    }
  }
  bool contains(uint64_t value) const {
    if (value == 0) return has_zero_;
    for (size_t slot = place(value);; slot = (slot + 1) & mask_) {
      if (slots_[slot] == value) return true;
      if (slots_[slot] == 0) return false;
    }
  }

 private:
  size_t place(uint64_t value) const { return value * 0x9E3779B97F4A7C15ull >> shift_; }

  std::vector<uint64_t> slots_;
  size_t mask_ = 0;
  int shift_ = 0;
  bool has_zero_ = false;
};

// Turns texts into sets of shingle hashes (in the order of the text), and compares them.
class ShingleSets {
 public:
  explicit ShingleSets(const ShingleConfig& config) : shingler_(config) {}

  std::vector<uint64_t> unique(std::string_view text);

  // Makes `set` the one that jaccard() compares with.
  void load(const std::vector<uint64_t>& set);
  // |x ∩ y| / |x ∪ y| of the loaded set and `other`, or -1 as soon as it is certain to be below `threshold`.
  double jaccard(const std::vector<uint64_t>& other, double threshold) const;

 private:
  Shingler shingler_;
  std::vector<uint64_t> hashes_;
  HashSet64 table_;
  size_t loaded_ = 0;
};

}  // namespace mify
