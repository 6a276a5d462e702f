// The plan of a window of documents: fragments, FIM cuts with their re-merged tokens, exact lengths, bins.
// Twin of mify/data/plan_ref.py.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "packing/bpe.hpp"
#include "packing/fim.hpp"
#include "packing/spans.hpp"

namespace mify {

// Token shards as they lie in memory; documents are numbered through all of them and never cross a shard.
struct ShardsView {
  std::vector<const void*> tokens;   // one pointer a shard
  std::vector<int64_t> starts;       // (shards + 1) first token of each shard in the numbering through all
  int token_bytes = 2;               // 2 or 4
  std::span<const int64_t> offsets;  // (documents + 1) first token of each document
  std::span<const uint64_t> keys;    // (documents) 64 bits of the document's id
  std::span<const uint8_t> domains;  // (documents)
  // Where they are known: nodes of the documents' syntax trees, and (documents + 1) first node of each document.
  std::span<const SyntaxNode> nodes;
  std::span<const int64_t> node_offsets;

  std::span<const SyntaxNode> nodes_of(int64_t document) const {
    if (node_offsets.empty()) return {};
    const auto first = static_cast<size_t>(node_offsets[static_cast<size_t>(document)]);
    return nodes.subspan(first, static_cast<size_t>(node_offsets[static_cast<size_t>(document) + 1]) - first);
  }

  size_t shard_of(int64_t token) const;
};

struct WindowOptions {
  int32_t context = 0;
  int32_t max_pieces = 0;
  uint64_t seed = 0;
  uint32_t epoch = 0;
  uint32_t window = 0;
  uint64_t corpus_key = 0;
  bool fim = false;
  uint64_t fim_domains = 0;  // bit d: documents of domain d may be permuted
  FimOptions fim_options;
  unsigned threads = 1;
};

// Tokens kept free in a fragment that is to be permuted; see mify/data/fim.py:FIM_ROOM.
inline constexpr int32_t kFimRoom = 16;
// How many tokens before the capacity's end a boundary is looked for; see mify/data/fragments.py.
inline constexpr int32_t kFragmentSearch = 256;

struct WindowCounts {
  int64_t fragments = 0, psm = 0, spm = 0, plain_no_room = 0, plain_no_boundary = 0, plain_no_text = 0;
  int64_t source_tokens = 0, tokens = 0;
};

struct WindowPlan {
  std::vector<int64_t> bin_starts;      // (B + 1)
  std::vector<int64_t> piece_document;  // (P)
  std::vector<int32_t> piece_fragment;  // (P)
  std::vector<uint8_t> piece_mode;      // (P)
  std::vector<int32_t> piece_middle;    // (P)
  std::vector<int64_t> span_starts;     // (P + 1)
  Spans spans;
  WindowCounts counts;
};

// Throws std::invalid_argument for a document number beyond the shards.
WindowPlan plan_window(const Bpe& bpe, const ShardsView& shards, std::span<const int64_t> documents,
                       const WindowOptions& options);

}  // namespace mify
