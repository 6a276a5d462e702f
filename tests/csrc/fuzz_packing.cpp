// Random inputs through every C++ entry point of csrc/packing, to be built with sanitizers.
//
//   fuzz_packing SEED ITERATIONS
//
// Inputs lie in heap blocks of exactly their size, so that a read past an end is seen; the CUDA kernel of the
// gather-and-patch pass runs too, as one thread after the other. Results are held to what they must fulfil (pieces
// tile their documents, bins hold what fits, host and kernel give the same bits), damaged input to an exception or to
// a result of the right shape. Ends with a digest of all results, which does not depend on the number of threads.
#define MIFY_CUDA_EMULATION
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "packing/best_fit.hpp"
#include "packing/bpe.hpp"
#include "packing/bpe_train.hpp"
#include "packing/fim_pack_kernel.cuh"
#include "packing/pre_tokenizer.hpp"
#include "packing/rows.hpp"
#include "packing/window.hpp"
#include "text/mix.hpp"

namespace {

using namespace mify;

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() { return fmix64(state_ += 0x9E3779B97F4A7C15ull); }
  size_t below(size_t bound) { return static_cast<size_t>(next() % bound); }
  bool chance(size_t of) { return below(of) == 0; }

 private:
  uint64_t state_;
};

uint64_t digest = 0;

void take(uint64_t value) {
  digest = mum(digest ^ value, 0x9E3779B97F4A7C15ull) + 1;
}

void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "failed: %s\n", what);
  std::abort();
}

// An array in a heap block of exactly its size.
template <class T>
struct Exact {
  explicit Exact(const std::vector<T>& from) : data(new T[from.size()]), size(from.size()) {
    if (size > 0) std::memcpy(data.get(), from.data(), size * sizeof(T));
  }
  std::span<const T> view() const { return {data.get(), size}; }

  std::unique_ptr<T[]> data;
  size_t size;
};

// Valid UTF-8 with what the pre-tokenizer's pattern turns on.
std::string random_text(Random& random, size_t most) {
  static const char* const kPieces[] = {
      "def ",  "x",     " ",  "  ",  "\n",     "\r\n",   "\t",       "=",       "####",
      "9",     "12345", "'s", "'LL", "é",      "中文",   "🙂",       "\u00a0",  "\u2028",
      "_name", "(",     ")",  "ſ",   "\u3000", "return", "\n\n    ", "e\u0301", "<|fim_prefix|>",
      "\x7f"};
  constexpr size_t kCount = sizeof(kPieces) / sizeof(kPieces[0]);
  std::string text;
  const size_t size = random.below(most + 1);
  while (text.size() < size) {
    const char* const piece = kPieces[random.below(kCount)];
    for (size_t times = random.chance(12) ? random.below(40) + 1 : 1; times > 0; --times) text += piece;
  }
  return text;
}

// A vocabulary as training makes it: `special` tokens first, then bytes, then merges.
struct Vocabulary {
  static constexpr uint32_t kSpecial = 8;  // end of text, pad, prefix, middle, suffix, file separator, two more
  BpeDefinition definition;

  Vocabulary(const std::vector<std::string>& texts, uint32_t size) {
    WordCounts words;
    for (const std::string& text : texts) words.add(text);
    std::vector<uint8_t> bytes(256);
    std::iota(bytes.begin(), bytes.end(), uint8_t{0});
    const TrainedBpe trained = train_bpe(words, size, kSpecial, bytes);
    for (uint32_t i = 0; i < kSpecial; ++i) definition.token_bytes.push_back("<|special_" + std::to_string(i) + "|>");
    for (int byte = 0; byte < 256; ++byte) definition.token_bytes.emplace_back(1, static_cast<char>(byte));
    for (const std::string& token : trained.tokens) definition.token_bytes.push_back(token);
    definition.is_special.assign(definition.token_bytes.size(), 0);
    std::fill_n(definition.is_special.begin(), kSpecial, uint8_t{1});
    definition.merge_left = trained.merge_left;
    definition.merge_right = trained.merge_right;
    definition.merge_result = trained.merge_result;
    for (uint32_t byte = 0; byte < 256; ++byte) definition.byte_ids.push_back(kSpecial + byte);
  }
};

std::string text_of(const Bpe& bpe, std::span<const uint32_t> ids) {
  std::string text;
  for (const uint32_t id : ids) text += bpe.bytes(id);
  return text;
}

void check_encoding(const Bpe& bpe, WordMemory& memory, const std::string& text) {
  const Exact<char> exact(std::vector<char>(text.begin(), text.end()));
  const std::string_view view(exact.data.get(), exact.size);
  std::vector<uint32_t> plain, fast;
  bpe.encode(view, plain);
  bpe.encode(view, fast, memory);
  require(plain == fast, "the memory changes no ids");
  require(text_of(bpe, plain) == text, "ids come back as their text");
  PreTokenizer words(reinterpret_cast<const uint8_t*>(view.data()), view.size());
  for (size_t at = 0; at < view.size();) {
    const size_t end = words.next(at);
    require(end > at && end <= view.size(), "pre-tokens tile the text");
    at = end;
  }
  for (const uint32_t id : plain) take(id);
}

void check_bins(Random& random) {
  const auto capacity = static_cast<int32_t>(random.below(300) + 1);
  const auto most = static_cast<int32_t>(random.below(9) + 1);
  std::vector<int32_t> lengths(random.below(2500));
  for (int32_t& length : lengths) length = static_cast<int32_t>(random.below(static_cast<size_t>(capacity) + 1));
  const Exact<int32_t> exact(lengths);
  const Bins bins = best_fit_decreasing(exact.view(), capacity, most);
  std::vector<int> seen(lengths.size(), 0);
  for (size_t bin = 0; bin + 1 < bins.starts.size(); ++bin) {
    int64_t sum = 0;
    require(bins.starts[bin + 1] - bins.starts[bin] <= most, "a bin has at most max_pieces");
    for (int64_t i = bins.starts[bin]; i < bins.starts[bin + 1]; ++i) {
      const auto piece = static_cast<size_t>(bins.pieces[static_cast<size_t>(i)]);
      ++seen[piece];
      sum += lengths[piece];
      take(piece);
    }
    require(sum <= capacity, "a bin holds what fits");
  }
  for (const int count : seen) require(count == 1, "every piece lies in one bin");
  if (!lengths.empty()) {
    lengths[random.below(lengths.size())] = random.chance(2) ? -1 : capacity + 1;
    try {
      best_fit_decreasing(lengths, capacity, most);
      require(false, "a length beyond the capacity is refused");
    } catch (const std::invalid_argument&) {
    }
  }
}

// Shards in memory, as the binding holds them.
template <class T>
struct Corpus {
  std::vector<std::unique_ptr<Exact<T>>> shards;
  std::vector<int64_t> offsets{0}, node_offsets{0};
  std::vector<uint64_t> keys;
  std::vector<uint8_t> domains;
  std::vector<SyntaxNode> nodes;
  ShardsView view;

  Corpus(Random& random, const Bpe& bpe) {
    view.token_bytes = sizeof(T);
    view.starts.push_back(0);
    for (size_t shard = random.below(3) + 1; shard > 0; --shard) {
      std::vector<T> tokens;
      for (size_t document = random.below(6) + 1; document > 0; --document) {
        const std::string text = random_text(random, random.chance(4) ? 3000 : 300);
        std::vector<uint32_t> ids;
        bpe.encode(text, ids);
        if (random.chance(4)) tokens.push_back(6);  // a language separator
        if (random.chance(4)) {
          tokens.push_back(7);
          for (size_t file = random.below(3); file > 0; --file) {
            tokens.push_back(5);
            std::vector<uint32_t> path;
            bpe.encode(random.chance(3) ? "path" : "a/b.py\n", path);
            tokens.insert(tokens.end(), path.begin(), path.end());
          }
        }
        tokens.insert(tokens.end(), ids.begin(), ids.end());
        if (!random.chance(9)) tokens.push_back(0);
        const auto characters = static_cast<int32_t>(text.size());
        int32_t start = 0;
        while (random.chance(2) && start < characters) {
          start += static_cast<int32_t>(random.below(20));
          nodes.push_back({start, start + static_cast<int32_t>(random.below(60))});
        }
        offsets.push_back(view.starts.back() + static_cast<int64_t>(tokens.size()));
        node_offsets.push_back(static_cast<int64_t>(nodes.size()));
        keys.push_back(random.next());
        domains.push_back(static_cast<uint8_t>(random.below(3)));
      }
      shards.push_back(std::make_unique<Exact<T>>(tokens));
      view.tokens.push_back(shards.back()->data.get());
      view.starts.push_back(view.starts.back() + static_cast<int64_t>(tokens.size()));
    }
    view.offsets = offsets;
    view.keys = keys;
    view.domains = domains;
    view.nodes = nodes;
    view.node_offsets = node_offsets;
  }
};

PlanView view_of(const WindowPlan& plan) {
  return {plan.bin_starts, plan.piece_document, plan.span_starts,  plan.spans.source,
          plan.piece_mode, plan.piece_middle,   plan.spans.length, plan.spans.patches};
}

bool same(const WindowPlan& a, const WindowPlan& b) {
  return a.bin_starts == b.bin_starts && a.piece_document == b.piece_document && a.piece_fragment == b.piece_fragment &&
         a.piece_mode == b.piece_mode && a.piece_middle == b.piece_middle && a.span_starts == b.span_starts &&
         a.spans.source == b.spans.source && a.spans.length == b.spans.length && a.spans.patches == b.spans.patches;
}

// Host and emulated kernel on the same tables: tokens, labels, positions, cu_seqlens.
struct Batch {
  std::vector<int64_t> tokens, labels, positions;
  std::vector<int32_t> bounds;
  explicit Batch(const FimPackParams& p)
      : tokens(static_cast<size_t>(p.num_rows * p.context), -7),
        labels(tokens),
        positions(tokens),
        bounds(static_cast<size_t>(p.cu_length), -7) {}
  void into(FimPackParams& params) {
    params.tokens = tokens.data();
    params.labels = labels.data();
    params.positions = positions.data();
    params.cu_seqlens = bounds.data();
  }
  bool operator==(const Batch&) const = default;
};

template <class T, bool spans>
Batch on_the_kernel(FimPackParams params) {
  Batch batch(params);
  batch.into(params);
  for (int64_t block = FimPackBlock<T, spans>::blocks(params) - 1; block >= 0; --block) {
    for (int thread = 0; thread < kFimPackThreads; ++thread) {
      FimPackBlock<T, spans>(params, static_cast<uint32_t>(block), thread).run();
    }
  }
  return batch;
}

template <class T>
void check_rows(Random& random, const Corpus<T>& corpus, const WindowPlan& plan, int32_t context) {
  const auto num_bins = static_cast<int64_t>(plan.bin_starts.size()) - 1;
  if (num_bins == 0) return;
  std::vector<int64_t> bins(random.below(5) + 1);
  for (int64_t& bin : bins) bin = static_cast<int64_t>(random.below(static_cast<size_t>(num_bins)));
  RowOptions options;
  options.context = context;
  options.pad_id = 1;
  options.sentinels = {2, 3, 4};
  options.loss_on_middle_only = random.chance(2);
  options.threads = random.chance(4) ? 3 : 1;
  std::vector<uint64_t> skip;
  if (random.chance(3)) skip.push_back(corpus.keys[random.below(corpus.keys.size())]);
  options.skip = skip;
  const size_t rows = bins.size(), width = static_cast<size_t>(context), row_bits = (width + 7) / 8;
  const std::unique_ptr<T[]> tokens(new T[rows * width]);
  const std::unique_ptr<uint8_t[]> bits(new uint8_t[rows * row_bits]);
  const std::unique_ptr<int32_t[]> used(new int32_t[rows]);
  std::vector<int32_t> starts;
  std::vector<int64_t> row_starts{0};
  const auto make = [&](const PlanView& view, std::span<const int64_t> chosen) {
    starts.clear();
    row_starts.assign(1, 0);
    make_rows(view, corpus.view, chosen, options, tokens.get(), bits.get(), used.get(), starts, row_starts);
  };
  make(view_of(plan), bins);
  for (size_t i = 0; i < rows * width; ++i) take(tokens[i]);

  const Exact<int32_t> exact_starts(starts);
  const Exact<int64_t> exact_rows(row_starts);
  FimPackParams params;
  params.rows = tokens.get();
  params.loss_bits = bits.get();
  params.segment_starts = exact_starts.data.get();
  params.segment_rows = exact_rows.data.get();
  params.num_rows = static_cast<int64_t>(rows);
  params.context = context;
  params.num_segments = static_cast<int64_t>(starts.size());
  params.cu_length = params.num_segments + 1 + static_cast<int64_t>(random.below(4));
  Batch host(params);
  FimPackParams mine = params;
  host.into(mine);
  unpack_rows(mine, sizeof(T), options.threads);
  require(host == on_the_kernel<T, false>(params), "unpack_rows: host and kernel give the same bits");

  // The same batch gathered by spans from one buffer.
  std::vector<T> buffer, patches;
  for (const auto& shard : corpus.shards) buffer.insert(buffer.end(), shard->view().begin(), shard->view().end());
  for (const uint32_t id : plan.spans.patches) patches.push_back(static_cast<T>(id));
  std::vector<int64_t> source, span_rows{0};
  std::vector<int32_t> span_starts, loss;
  for (const int64_t bin : bins) {
    int32_t at = 0;
    for (int64_t piece = plan.bin_starts[bin]; piece < plan.bin_starts[bin + 1]; ++piece) {
      const bool skipped = !skip.empty() && corpus.keys[static_cast<size_t>(plan.piece_document[piece])] == skip[0];
      const bool middle = options.loss_on_middle_only && plan.piece_mode[piece] != 0;
      loss.push_back(skipped ? context : at + (middle ? plan.piece_middle[piece] : 1));
      for (int64_t span = plan.span_starts[piece]; span < plan.span_starts[piece + 1]; ++span) {
        source.push_back(skipped ? kPadding : plan.spans.source[span]);
        span_starts.push_back(at);
        at += plan.spans.length[span];
      }
    }
    if (at < context) {
      loss.push_back(context);
      source.push_back(kPadding);
      span_starts.push_back(at);
    }
    span_rows.push_back(static_cast<int64_t>(source.size()));
  }
  const Exact<T> exact_buffer(buffer), exact_patches(patches);
  const Exact<int64_t> exact_source(source), exact_span_rows(span_rows);
  const Exact<int32_t> exact_span_starts(span_starts), exact_loss(loss);
  params.buffer = exact_buffer.data.get();
  params.patches = exact_patches.data.get();
  params.span_source = exact_source.data.get();
  params.span_starts = exact_span_starts.data.get();
  params.span_rows = exact_span_rows.data.get();
  params.segment_loss = exact_loss.data.get();
  params.num_spans = static_cast<int64_t>(source.size());
  params.buffer_size = static_cast<int64_t>(buffer.size());
  params.patches_size = static_cast<int64_t>(patches.size());
  params.pad_id = 1;
  params.sentinels[0] = 2, params.sentinels[1] = 3, params.sentinels[2] = 4;
  Batch gathered(params);
  mine = params;
  gathered.into(mine);
  pack_spans(mine, sizeof(T), options.threads);
  require(gathered == host, "pack_spans gives the batch of the rows");
  require(gathered == on_the_kernel<T, true>(params), "pack_spans: host and kernel give the same bits");

  // Damaged tables: the host refuses or copes, the kernel reads and writes nowhere else.
  const auto damage = [&]<class V>(const Exact<V>& array) {
    if (array.size > 0) {
      array.data[random.below(array.size)] = static_cast<V>(random.chance(2) ? random.next() : random.below(9));
    }
  };
  damage(exact_source), damage(exact_span_rows), damage(exact_span_starts), damage(exact_loss);
  damage(exact_starts), damage(exact_rows);
  on_the_kernel<T, true>(params);
  on_the_kernel<T, false>(params);
  try {
    pack_spans(mine, sizeof(T), 1);
  } catch (const std::invalid_argument&) {
  }
  WindowPlan broken = plan;
  const size_t where = random.below(broken.spans.source.size());
  broken.spans.source[where] = static_cast<int64_t>(random.next());
  if (random.chance(2)) broken.spans.length[where] = static_cast<int32_t>(random.next());
  if (random.chance(3))
    broken.span_starts[random.below(broken.span_starts.size())] = static_cast<int64_t>(random.next());
  try {
    make(view_of(broken), bins);
  } catch (const std::invalid_argument&) {
  }
}

template <class T>
void check_plan(Random& random, const Bpe& bpe) {
  Corpus<T> corpus(random, bpe);
  std::vector<int64_t> documents(corpus.keys.size());
  std::iota(documents.begin(), documents.end(), int64_t{0});
  WindowOptions options;
  options.context = static_cast<int32_t>(32 + random.below(random.chance(3) ? 40 : 600));
  options.max_pieces = static_cast<int32_t>(random.below(20) + 1);
  options.seed = random.next();
  options.epoch = static_cast<uint32_t>(random.below(1 << 24));
  options.fim = !random.chance(5);
  options.fim_domains = random.below(8);
  options.fim_options.rate_threshold = random.chance(2) ? uint64_t{1} << 32 : random.next() >> 32;
  options.fim_options.spm_threshold = random.next() >> 32;
  options.fim_options.mode = static_cast<CutMode>(random.below(3));
  options.fim_options.prefix_id = 2, options.fim_options.middle_id = 3, options.fim_options.suffix_id = 4;
  options.fim_options.file_separator_id = random.chance(4) ? -1 : 5;
  const WindowPlan plan = plan_window(bpe, corpus.view, documents, options);
  options.threads = 3;
  require(same(plan, plan_window(bpe, corpus.view, documents, options)), "threads do not change a plan");
  int64_t tokens = 0;
  for (const int32_t length : plan.spans.length) {
    require(length > 0, "spans are not empty");
    tokens += length;
  }
  require(tokens == plan.counts.tokens, "the counts are those of the spans");
  require(plan.counts.source_tokens == corpus.offsets.back(), "every token of every document was planned");
  for (const uint8_t mode : plan.piece_mode) take(mode);
  check_rows(random, corpus, plan, options.context);

  // A shard with damaged bytes in it: any ids, so text that is no UTF-8.
  for (const auto& shard : corpus.shards) {
    for (size_t i = 0; i < shard->size; ++i) {
      if (random.chance(20)) shard->data[i] = static_cast<T>(random.chance(2) ? random.next() : random.below(600));
    }
  }
  try {
    plan_window(bpe, corpus.view, documents, options);
  } catch (const std::invalid_argument&) {
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) {
    std::fprintf(stderr, "usage: fuzz_packing SEED ITERATIONS\n");
    return 2;
  }
  Random random(std::strtoull(arguments[1], nullptr, 10));
  const size_t iterations = std::strtoull(arguments[2], nullptr, 10);
  std::vector<std::string> texts;
  for (int i = 0; i < 40; ++i) texts.push_back(random_text(random, 2000));
  const Vocabulary vocabulary(texts, 420);
  const Bpe bpe(vocabulary.definition);
  WordMemory memory;
  for (size_t i = 0; i < iterations; ++i) {
    check_encoding(bpe, memory, random_text(random, 400));
    check_bins(random);
    random.chance(3) ? check_plan<uint32_t>(random, bpe) : check_plan<uint16_t>(random, bpe);
  }
  std::printf("%016llx\n", static_cast<unsigned long long>(digest));
  return 0;
}
