#include "packing/window.hpp"

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>

#include "packing/best_fit.hpp"
#include "packing/philox.hpp"
#include "packing/pre_tokenizer.hpp"
#include "threads.hpp"

namespace mify {
namespace {

constexpr size_t kDocumentsAtOnce = 256;

// Pieces in the order of their documents.
struct Pieces {
  std::vector<int64_t> document;
  std::vector<int32_t> fragment, middle, length;
  std::vector<uint8_t> mode;
  std::vector<int64_t> span_starts{0};
  Spans spans;
  WindowCounts counts;
};

// The whole character that ends with the last of `before`, and the one that begins with the first of `after`; false
// where the place between the two texts lies inside a character.
bool characters_around(std::string_view before, std::string_view after, uint32_t& left, uint32_t& right) {
  size_t start = before.size();
  while (start > 0 && is_continuation(static_cast<uint8_t>(before[start - 1]))) --start;
  if (start == 0 || after.empty() || is_continuation(static_cast<uint8_t>(after[0]))) return false;
  --start;
  const auto bytes = [](std::string_view text) { return reinterpret_cast<const uint8_t*>(text.data()); };
  const uint8_t lead = static_cast<uint8_t>(before[start]);
  const size_t size = lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  if (start + size != before.size()) return false;
  left = character_at(bytes(before), start, before.size()).code;
  right = character_at(bytes(after), 0, after.size()).code;
  return true;
}

template <class T>
class Planner {
 public:
  Planner(const Bpe& bpe, const ShardsView& shards, const WindowOptions& options)
      : bpe_(bpe), shards_(shards), options_(options), fim_(bpe, options.fim_options) {}

  void add(int64_t document, Pieces& out) {
    const int64_t first = shards_.offsets[static_cast<size_t>(document)];
    const int64_t length = shards_.offsets[static_cast<size_t>(document) + 1] - first;
    if (length == 0) return;
    const size_t shard = shards_.shard_of(first);
    const T* const ids = static_cast<const T*>(shards_.tokens[shard]) + (first - shards_.starts[shard]);
    const uint64_t key = shards_.keys[static_cast<size_t>(document)];
    const bool may_fim = options_.fim && (options_.fim_domains >> shards_.domains[static_cast<size_t>(document)] & 1);
    out.counts.source_tokens += length;
    if (sizeof(T) > 2) check_ids(ids, length, document);

    int64_t begin = 0;
    bool begin_exact = true;
    nodes_ = shards_.nodes_of(document);
    characters_before_ = 0;
    for (int32_t number = 0; begin < length; ++number) {
      Words words{};
      bool chosen = false;
      if (may_fim) {
        words = draw(options_.seed, options_.epoch, key, static_cast<uint32_t>(number), Purpose::kFim);
        chosen = words[0] < options_.fim_options.rate_threshold;
      }
      int64_t end = length;
      bool end_exact = true;
      const int64_t capacity = options_.context - (chosen ? kFimRoom : 0);
      if (length > options_.context && length - begin > capacity) {
        end = boundary_before(ids, begin, begin + capacity, length);
        end_exact = end >= 0;
        if (!end_exact) end = begin + capacity;
      }
      add_fragment(ids, begin, end, first, document, number, chosen, begin_exact && end_exact, words, key, out);
      if (!nodes_.empty() && end < length) characters_before_ += fim_.count_text(ids, begin, end);
      begin = end;
      begin_exact = end_exact;
    }
  }

 private:
  void add_fragment(const T* ids, int64_t begin, int64_t end, int64_t base, int64_t document, int32_t number,
                    bool chosen, bool exact, const Words& words, uint64_t key, Pieces& out) {
    WindowCounts& counts = out.counts;
    ++counts.fragments;
    out.spans.begin_piece();
    typename FimPlanner<T>::Result result;
    if (chosen && !exact) {
      ++counts.plain_no_boundary;
    } else if (chosen) {
      const Words cuts = draw(options_.seed, options_.epoch, key, static_cast<uint32_t>(number), Purpose::kCut);
      result = fim_.plan(ids, begin, end, base, words, cuts, nodes_, characters_before_, out.spans);
      if (result.mode == PieceMode::kPlain) {
        ++counts.plain_no_text;
      } else if (out.spans.piece_length() > options_.context) {
        ++counts.plain_no_room;
        out.spans.undo_piece();
        result = {};
      } else {
        ++(result.mode == PieceMode::kPsm ? counts.psm : counts.spm);
      }
    }
    if (result.mode == PieceMode::kPlain) out.spans.copy(base + begin, base + end);
    const int64_t length = out.spans.piece_length();
    counts.tokens += length;
    out.document.push_back(document);
    out.fragment.push_back(number);
    out.middle.push_back(static_cast<int32_t>(result.middle_start));
    out.length.push_back(static_cast<int32_t>(length));
    out.mode.push_back(static_cast<uint8_t>(result.mode));
    out.span_starts.push_back(static_cast<int64_t>(out.spans.size()));
  }

  // The tables hold all ids of 16 bits. Of wider ones a damaged shard must not lead beyond them.
  void check_ids(const T* ids, int64_t length, int64_t document) const {
    T largest = 0;
    for (int64_t i = 0; i < length; ++i) largest = std::max(largest, ids[i]);
    if (largest < bpe_.vocab_size()) return;
    throw std::invalid_argument("document " + std::to_string(document) + " has an id beyond the vocabulary of " +
                                std::to_string(bpe_.vocab_size()));
  }

  // The last token in (limit - kFragmentSearch, limit] before which two characters stand that always part, or -1.
  int64_t boundary_before(const T* ids, int64_t begin, int64_t limit, int64_t length) {
    const CharacterClasses& classes = CharacterClasses::get();
    for (int64_t place = limit; place > std::max(begin, limit - kFragmentSearch); --place) {
      before_.clear();
      after_.clear();
      for (int64_t i = std::max(int64_t{0}, place - 4); i < place; ++i) before_ += bpe_.bytes(ids[i]);
      for (int64_t i = place; i < std::min(length, place + 4); ++i) after_ += bpe_.bytes(ids[i]);
      uint32_t left = 0, right = 0;
      if (characters_around(before_, after_, left, right) && always_part(left, right, classes)) return place;
    }
    return -1;
  }

  const Bpe& bpe_;
  const ShardsView& shards_;
  const WindowOptions& options_;
  FimPlanner<T> fim_;
  std::string before_, after_;
  std::span<const SyntaxNode> nodes_;  // of the document that is being planned
  int64_t characters_before_ = 0;      // of the fragment
};

template <class V>
void append(V& to, const V& from) {
  to.insert(to.end(), from.begin(), from.end());
}

void append(Pieces& to, const Pieces& from) {
  append(to.document, from.document);
  append(to.fragment, from.fragment);
  append(to.middle, from.middle);
  append(to.length, from.length);
  append(to.mode, from.mode);
  const auto spans = static_cast<int64_t>(to.spans.size());
  const auto patches = static_cast<int64_t>(to.spans.patches.size());
  for (size_t i = 1; i < from.span_starts.size(); ++i) to.span_starts.push_back(from.span_starts[i] + spans);
  for (const int64_t source : from.spans.source) {
    to.spans.source.push_back(source < 0 ? ~(~source + patches) : source);
  }
  append(to.spans.length, from.spans.length);
  append(to.spans.patches, from.spans.patches);
  WindowCounts& counts = to.counts;
  counts.fragments += from.counts.fragments;
  counts.psm += from.counts.psm;
  counts.spm += from.counts.spm;
  counts.plain_no_room += from.counts.plain_no_room;
  counts.plain_no_boundary += from.counts.plain_no_boundary;
  counts.plain_no_text += from.counts.plain_no_text;
  counts.source_tokens += from.counts.source_tokens;
  counts.tokens += from.counts.tokens;
}

// Every group of documents is planned by itself, so the result does not depend on who takes which.
template <class T>
Pieces plan_pieces(const Bpe& bpe, const ShardsView& shards, std::span<const int64_t> documents,
                   const WindowOptions& options) {
  const size_t groups = (documents.size() + kDocumentsAtOnce - 1) / kDocumentsAtOnce;
  ThreadTeam team(options.threads);
  if (team.size() == 1 || groups < 2) {
    Pieces pieces;
    Planner<T> planner(bpe, shards, options);
    for (const int64_t document : documents) planner.add(document, pieces);
    return pieces;
  }
  std::vector<Pieces> parts(groups);
  std::vector<std::unique_ptr<Planner<T>>> planners(team.size());
  team.for_ranges(groups, 1, [&](unsigned worker, size_t first, size_t last) {
    if (!planners[worker]) planners[worker] = std::make_unique<Planner<T>>(bpe, shards, options);
    for (size_t group = first; group < last; ++group) {
      const size_t end = std::min(documents.size(), (group + 1) * kDocumentsAtOnce);
      for (size_t i = group * kDocumentsAtOnce; i < end; ++i) planners[worker]->add(documents[i], parts[group]);
    }
  });
  Pieces pieces;
  for (Pieces& part : parts) {
    append(pieces, part);
    part = {};
  }
  return pieces;
}

}  // namespace

size_t ShardsView::shard_of(int64_t token) const {
  return static_cast<size_t>(std::upper_bound(starts.begin(), starts.end() - 1, token) - starts.begin()) - 1;
}

WindowPlan plan_window(const Bpe& bpe, const ShardsView& shards, std::span<const int64_t> documents,
                       const WindowOptions& options) {
  for (const int64_t document : documents) {
    if (document < 0 || static_cast<size_t>(document) >= shards.keys.size()) {
      throw std::invalid_argument("documents: " + std::to_string(document) + " is not below the number of documents " +
                                  std::to_string(shards.keys.size()));
    }
  }
  const Pieces pieces = shards.token_bytes == 2 ? plan_pieces<uint16_t>(bpe, shards, documents, options)
                                                : plan_pieces<uint32_t>(bpe, shards, documents, options);
  const Bins bins = best_fit_decreasing(pieces.length, options.context, options.max_pieces);
  const size_t num_bins = bins.starts.size() - 1, num_pieces = pieces.document.size();

  WindowPlan plan;
  plan.counts = pieces.counts;
  plan.bin_starts.reserve(num_bins + 1);
  plan.bin_starts.push_back(0);
  plan.piece_document.reserve(num_pieces);
  plan.piece_fragment.reserve(num_pieces);
  plan.piece_mode.reserve(num_pieces);
  plan.piece_middle.reserve(num_pieces);
  plan.span_starts.reserve(num_pieces + 1);
  plan.span_starts.push_back(0);
  plan.spans.source.reserve(pieces.spans.size());
  plan.spans.length.reserve(pieces.spans.size());
  plan.spans.patches.reserve(pieces.spans.patches.size());
  const Permutation order(num_bins, options.seed, options.epoch, options.corpus_key, options.window,
                          Purpose::kBinOrder);
  for (size_t place = 0; place < num_bins; ++place) {
    const size_t bin = order(place);
    for (int64_t entry = bins.starts[bin]; entry < bins.starts[bin + 1]; ++entry) {
      const auto piece = static_cast<size_t>(bins.pieces[static_cast<size_t>(entry)]);
      plan.piece_document.push_back(pieces.document[piece]);
      plan.piece_fragment.push_back(pieces.fragment[piece]);
      plan.piece_mode.push_back(pieces.mode[piece]);
      plan.piece_middle.push_back(pieces.middle[piece]);
      for (auto span = pieces.span_starts[piece]; span < pieces.span_starts[piece + 1]; ++span) {
        const int64_t source = pieces.spans.source[static_cast<size_t>(span)];
        const int32_t length = pieces.spans.length[static_cast<size_t>(span)];
        plan.spans.length.push_back(length);
        if (source >= 0) {
          plan.spans.source.push_back(source);
        } else {
          plan.spans.source.push_back(~static_cast<int64_t>(plan.spans.patches.size()));
          const auto from = pieces.spans.patches.begin() + ~source;
          plan.spans.patches.insert(plan.spans.patches.end(), from, from + length);
        }
      }
      plan.span_starts.push_back(static_cast<int64_t>(plan.spans.size()));
    }
    plan.bin_starts.push_back(static_cast<int64_t>(plan.piece_document.size()));
  }
  return plan;
}

}  // namespace mify
