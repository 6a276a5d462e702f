// Fill-in-the-middle at character level, exact without re-tokenizing the document. Twin of mify/data/fim.py, where the
// method and its proof stand.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "packing/bpe.hpp"
#include "packing/philox.hpp"
#include "packing/spans.hpp"

namespace mify {

enum class CutMode : uint8_t { kUniform, kLine, kNode };

// A node of a document's syntax tree: characters [start, end) of its text, special tokens not counted.
struct SyntaxNode {
  int32_t start, end;
};

struct FimOptions {
  uint64_t rate_threshold = 0;  // floor(rate * 2^32)
  uint64_t spm_threshold = 0;
  CutMode mode = CutMode::kUniform;
  uint32_t prefix_id = 0, middle_id = 0, suffix_id = 0, end_of_text_id = 0;
  int64_t file_separator_id = -1;  // -1: the vocabulary has none
};

enum class PieceMode : uint8_t { kPlain = 0, kPsm = 1, kSpm = 2 };

// Plans fragments of documents whose tokens are of type T. Holds scratch memory: one a thread.
template <class T>
class FimPlanner {
 public:
  FimPlanner(const Bpe& bpe, const FimOptions& options) : bpe_(bpe), options_(options) {}

  struct Result {
    PieceMode mode = PieceMode::kPlain;  // plain: there is no text to cut
    int64_t middle_start = 0;
  };
  // Appends the permuted form of ids[begin, end) to `spans`, sources counted from `base` (the number of ids[0]).
  // Nothing is appended where the result is plain.
  // For CutMode::kNode: the document's nodes, sorted by (start, -end), and how many characters lie before ids[begin].
  Result plan(const T* ids, int64_t begin, int64_t end, int64_t base, const Words& words, const Words& cut_words,
              std::span<const SyntaxNode> nodes, int64_t characters_before, Spans& spans);

  // Characters in ids[begin, end), special tokens not counted.
  int64_t count_text(const T* ids, int64_t begin, int64_t end) const;

 private:
  struct Position {  // a byte of a token; the end of the body is (its end, 0)
    int64_t token;
    uint32_t byte;
    friend bool operator==(const Position&, const Position&) = default;
  };
  // The bytes of tokens [first, last) and where each of them begins.
  struct View {
    int64_t first = 0, last = 0;
    std::string bytes;
    std::vector<uint32_t> starts;
  };
  static constexpr int64_t kNone = -1;

  std::pair<Position, Position> choose_cuts(const Words& words, std::span<const SyntaxNode> nodes, int64_t first);
  std::pair<uint64_t, uint64_t> choose_node(const Words& words, uint64_t characters, std::span<const SyntaxNode> nodes,
                                            int64_t first);
  void encode_piece(Position low, Position high, int64_t base, Spans& spans);
  int64_t find_meeting(Position low, Position high);
  int64_t find_part(Position low, Position high);
  void encode_whole(Position low, Position high, std::vector<uint32_t>& out);
  void look(int64_t first, int64_t last);
  int64_t token_beginning_at(size_t byte) const;
  size_t whole_characters_end() const;
  uint32_t count(std::span<const uint16_t> table);
  std::pair<int64_t, uint32_t> locate(std::span<const uint16_t> table, uint32_t unit) const;

  const Bpe& bpe_;
  const FimOptions options_;
  const T* ids_ = nullptr;
  int64_t begin_ = 0, end_ = 0;  // the body: the tokens of the text that is cut
  View view_;
  std::vector<uint32_t> sums_, head_, tail_;
  std::vector<SyntaxNode> around_;
  std::vector<std::pair<uint32_t, uint32_t>> new_words_;
};

}  // namespace mify
