// Pieces as lists of spans: where to copy tokens from, and the few tokens to put between the copies.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace mify {

struct Spans {
  std::vector<int64_t> source;  // a token's number in the shards (>= 0), or ~place in `patches` (< 0)
  std::vector<int32_t> length;
  std::vector<uint32_t> patches;

  size_t size() const { return source.size(); }

  void begin_piece() { piece_ = source.size(); }
  // Drops the piece's spans again.
  void undo_piece() {
    while (source.size() > piece_) {
      if (source.back() < 0) patches.resize(static_cast<size_t>(~source.back()));
      source.pop_back();
      length.pop_back();
    }
  }
  int64_t piece_length() const {
    int64_t sum = 0;
    for (size_t i = piece_; i < length.size(); ++i) sum += length[i];
    return sum;
  }

  void copy(int64_t begin, int64_t end) {
    if (begin >= end) return;
    if (source.size() > piece_ && source.back() >= 0 && source.back() + length.back() == begin) {
      length.back() += static_cast<int32_t>(end - begin);
      return;
    }
    source.push_back(begin);
    length.push_back(static_cast<int32_t>(end - begin));
  }
  void patch(std::span<const uint32_t> ids) {
    if (ids.empty()) return;
    if (source.size() == piece_ || source.back() >= 0) {
      source.push_back(~static_cast<int64_t>(patches.size()));
      length.push_back(0);
    }
    patches.insert(patches.end(), ids.begin(), ids.end());
    length.back() += static_cast<int32_t>(ids.size());
  }
  void patch(uint32_t id) { patch(std::span<const uint32_t>(&id, 1)); }

 private:
  size_t piece_ = 0;  // first span of the piece that is being made
};

}  // namespace mify
