#include "packing/rows.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "threads.hpp"

namespace mify {
namespace {

void set_bits(uint8_t* bits, int64_t begin, int64_t end) {
  if (begin >= end) return;
  const int64_t first = begin >> 3, last = (end - 1) >> 3;
  const uint8_t head = static_cast<uint8_t>(0xFF << (begin & 7)),
                tail = static_cast<uint8_t>(0xFF >> (7 - ((end - 1) & 7)));
  if (first == last) {
    bits[first] |= head & tail;
    return;
  }
  bits[first] |= head;
  std::memset(bits + first + 1, 0xFF, static_cast<size_t>(last - first - 1));
  bits[last] |= tail;
}

template <class T>
void make_row(const PlanView& plan, const ShardsView& shards, int64_t bin, const RowOptions& options, T* row,
              uint8_t* bits, int32_t& used, int32_t* segments) {
  int64_t place = 0;
  size_t shard = 0;
  for (int64_t piece = plan.bin_starts[bin]; piece < plan.bin_starts[bin + 1]; ++piece) {
    const int64_t begin = place;
    *segments++ = static_cast<int32_t>(begin);
    const uint64_t key = shards.keys[static_cast<size_t>(plan.piece_document[piece])];
    const bool skipped = !options.skip.empty() && std::ranges::binary_search(options.skip, key);
    const int64_t loss_from =
        options.loss_on_middle_only && plan.piece_mode[piece] != 0 ? begin + plan.piece_middle[piece] : begin + 1;
    for (int64_t span = plan.span_starts[piece]; span < plan.span_starts[piece + 1]; ++span) {
      const int64_t source = plan.span_source[span];
      const int64_t length = plan.span_length[span];
      if (skipped) {
        std::fill_n(row + place, length, static_cast<T>(options.pad_id));
      } else if (source >= 0) {
        if (source < shards.starts[shard] || source >= shards.starts[shard + 1]) shard = shards.shard_of(source);
        std::memcpy(row + place, static_cast<const T*>(shards.tokens[shard]) + (source - shards.starts[shard]),
                    static_cast<size_t>(length) * sizeof(T));
      } else {
        const uint32_t* const patch = plan.patches.data() + ~source;
        std::copy_n(patch, length, row + place);
      }
      place += length;
    }
    if (skipped) continue;
    set_bits(bits, loss_from, place);
    if (plan.piece_mode[piece] == 0) continue;
    int64_t at = begin;
    for (int64_t span = plan.span_starts[piece]; span < plan.span_starts[piece + 1]; ++span) {
      const int64_t source = plan.span_source[span];
      const int64_t length = plan.span_length[span];
      for (int64_t i = 0; source < 0 && i < length; ++i) {
        if (std::ranges::find(options.sentinels, plan.patches[~source + i]) != options.sentinels.end()) {
          bits[(at + i) >> 3] &= static_cast<uint8_t>(~(1 << ((at + i) & 7)));
        }
      }
      at += length;
    }
  }
  used = static_cast<int32_t>(place);
  if (place < options.context) {
    *segments = used;
    std::fill(row + place, row + options.context, static_cast<T>(options.pad_id));
  }
}

// The tokens of a bin. Throws where the plan is not one of these shards: nothing after this looks again.
int64_t checked_length(const PlanView& plan, const ShardsView& shards, int64_t bin) {
  const auto within = [](int64_t begin, int64_t end, size_t size) {
    if (begin < 0 || begin > end || end > static_cast<int64_t>(size)) {
      throw std::invalid_argument("the plan's arrays do not fit one another");
    }
  };
  int64_t length = 0;
  within(plan.bin_starts[bin], plan.bin_starts[bin + 1], plan.piece_document.size());
  for (int64_t piece = plan.bin_starts[bin]; piece < plan.bin_starts[bin + 1]; ++piece) {
    if (static_cast<uint64_t>(plan.piece_document[piece]) >= shards.keys.size()) {
      throw std::invalid_argument("document " + std::to_string(plan.piece_document[piece]) +
                                  " of the plan lies beyond the shards");
    }
    within(plan.span_starts[piece], plan.span_starts[piece + 1], plan.span_source.size());
    for (int64_t span = plan.span_starts[piece]; span < plan.span_starts[piece + 1]; ++span) {
      const int64_t source = plan.span_source[span], size = plan.span_length[span];
      int64_t end = static_cast<int64_t>(plan.patches.size());
      if (source >= 0 && source < shards.starts.back()) {
        end = shards.starts[shards.shard_of(source) + 1];
      } else if (source >= 0) {
        end = -1;
      }
      if (size < 0 || (source < 0 ? ~source : source) > end - size) {
        throw std::invalid_argument("span " + std::to_string(span) + " of the plan lies beyond the shards");
      }
      length += size;
    }
  }
  return length;
}

}  // namespace

void make_rows(const PlanView& plan, const ShardsView& shards, std::span<const int64_t> bins, const RowOptions& options,
               void* tokens, uint8_t* loss_bits, int32_t* used, std::vector<int32_t>& segment_starts,
               std::vector<int64_t>& row_starts) {
  const auto num_bins = static_cast<int64_t>(plan.bin_starts.size()) - 1;
  const size_t first_row = row_starts.size() - 1;
  for (const int64_t bin : bins) {
    if (bin < 0 || bin >= num_bins) {
      throw std::invalid_argument("bins: " + std::to_string(bin) + " is not below the number of bins " +
                                  std::to_string(num_bins));
    }
    const int64_t length = checked_length(plan, shards, bin);
    if (length > options.context) {
      throw std::invalid_argument("bin " + std::to_string(bin) + " has " + std::to_string(length) +
                                  " tokens, more than the context " + std::to_string(options.context));
    }
    row_starts.push_back(row_starts.back() + plan.bin_starts[bin + 1] - plan.bin_starts[bin] +
                         (length < options.context ? 1 : 0));
  }
  segment_starts.resize(static_cast<size_t>(row_starts.back()));
  const int64_t row_bits = (options.context + 7) / 8;
  std::memset(loss_bits, 0, bins.size() * static_cast<size_t>(row_bits));
  ThreadTeam team(options.threads);
  team.for_ranges(bins.size(), 8, [&](unsigned, size_t first, size_t last) {
    for (size_t row = first; row < last; ++row) {
      const auto at = static_cast<int64_t>(row) * options.context;
      int32_t* const segments = segment_starts.data() + row_starts[first_row + row];
      uint8_t* const bits = loss_bits + static_cast<int64_t>(row) * row_bits;
      if (shards.token_bytes == 2) {
        make_row(plan, shards, bins[row], options, static_cast<uint16_t*>(tokens) + at, bits, used[row], segments);
      } else {
        make_row(plan, shards, bins[row], options, static_cast<uint32_t*>(tokens) + at, bits, used[row], segments);
      }
    }
  });
}

}  // namespace mify
