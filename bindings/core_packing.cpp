// mify._core.packing: arrays in, arrays out. Argument checks and GIL release only; the work is in csrc/packing.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "packing/best_fit.hpp"
#include "packing/bpe.hpp"
#include "packing/bpe_train.hpp"
#include "packing/philox.hpp"
#include "packing/pre_tokenizer.hpp"
#include "packing/rows.hpp"
#include "packing/window.hpp"
#include "threads.hpp"

namespace py = pybind11;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

template <class T>
std::span<const T> view(const Array<T>& array) {
  return {array.data(), static_cast<size_t>(array.size())};
}

// A vector becomes the array's memory: nothing is copied.
template <class T>
py::array_t<T> to_array(std::vector<T>&& values) {
  auto* const kept = new std::vector<T>(std::move(values));
  const py::capsule owner(kept, [](void* pointer) { delete static_cast<std::vector<T>*>(pointer); });
  return py::array_t<T>(static_cast<py::ssize_t>(kept->size()), kept->data(), owner);
}

template <class T>
std::vector<T> to_vector(const Array<T>& array) {
  return {array.data(), array.data() + array.size()};
}

constexpr size_t kLongTexts = 1 << 18;

mify::Bpe make_bpe(const std::vector<py::bytes>& token_bytes, const Array<uint8_t>& is_special,
                   const Array<uint32_t>& merge_left, const Array<uint32_t>& merge_right,
                   const Array<uint32_t>& merge_result, const Array<uint32_t>& byte_ids, bool ignore_merges) {
  mify::BpeDefinition definition;
  definition.token_bytes.reserve(token_bytes.size());
  for (const py::bytes& token : token_bytes) definition.token_bytes.emplace_back(token);
  definition.is_special = to_vector(is_special);
  definition.merge_left = to_vector(merge_left);
  definition.merge_right = to_vector(merge_right);
  definition.merge_result = to_vector(merge_result);
  definition.byte_ids = to_vector(byte_ids);
  definition.ignore_merges = ignore_merges;
  return mify::Bpe(definition);
}

// The UTF-8 of every text; `texts` holds them alive.
std::vector<std::string_view> views_of(const py::tuple& texts) {
  std::vector<std::string_view> views;
  views.reserve(texts.size());
  for (const py::handle text : texts) {
    if (!PyUnicode_Check(text.ptr())) throw py::type_error("texts must be str");
    Py_ssize_t size = 0;
    const char* const data = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
    if (data == nullptr) throw py::error_already_set();
    views.emplace_back(data, static_cast<size_t>(size));
  }
  return views;
}

// Counts do not depend on who counts what.
void count_words(mify::WordCounts& words, const py::sequence& sequence, unsigned threads) {
  const py::tuple texts(sequence);
  const std::vector<std::string_view> views = views_of(texts);
  const py::gil_scoped_release release;
  mify::ThreadTeam team(threads);
  if (team.size() == 1) {
    for (const std::string_view text : views) words.add(text);
    return;
  }
  std::vector<mify::WordCounts> parts(team.size());
  team.for_ranges(views.size(), 16, [&](unsigned worker, size_t first, size_t last) {
    for (size_t i = first; i < last; ++i) parts[worker].add(views[i]);
  });
  for (const mify::WordCounts& part : parts) words.add(part);
}

py::tuple train_bpe(const mify::WordCounts& words, uint32_t vocab_size, uint32_t first_id, const py::bytes& bytes) {
  const std::string_view order(bytes);
  mify::TrainedBpe trained;
  {
    const py::gil_scoped_release release;
    trained =
        mify::train_bpe(words, vocab_size, first_id, {reinterpret_cast<const uint8_t*>(order.data()), order.size()});
  }
  py::list tokens;
  for (const std::string& token : trained.tokens) tokens.append(py::bytes(token));
  return py::make_tuple(tokens, to_array(std::move(trained.merge_left)), to_array(std::move(trained.merge_right)),
                        to_array(std::move(trained.merge_result)));
}

// Texts are encoded in groups, so that the order of the ids does not depend on the threads.
py::tuple encode_batch(const mify::Bpe& bpe, const py::sequence& sequence, unsigned threads) {
  const py::tuple texts(sequence);
  const std::vector<std::string_view> views = views_of(texts);
  std::vector<uint32_t> ids;
  std::vector<int64_t> offsets(views.size() + 1, 0);
  {
    const py::gil_scoped_release release;
    mify::ThreadTeam team(threads);
    if (team.size() == 1 || views.size() == 1) {
      size_t bytes = 0;
      for (const std::string_view text : views) bytes += text.size();
      // Filling the memory costs more than it saves on a few words.
      std::optional<mify::WordMemory> memory;
      if (bytes >= kLongTexts) memory.emplace();
      for (size_t i = 0; i < views.size(); ++i) {
        memory ? bpe.encode(views[i], ids, *memory) : bpe.encode(views[i], ids);
        offsets[i + 1] = static_cast<int64_t>(ids.size());
      }
    } else {
      std::vector<std::vector<uint32_t>> parts(views.size());
      std::vector<mify::WordMemory> memories(team.size());
      team.for_ranges(views.size(), 1, [&](unsigned worker, size_t first, size_t last) {
        for (size_t i = first; i < last; ++i) bpe.encode(views[i], parts[i], memories[worker]);
      });
      for (size_t i = 0; i < views.size(); ++i) offsets[i + 1] = offsets[i] + static_cast<int64_t>(parts[i].size());
      ids.reserve(static_cast<size_t>(offsets.back()));
      for (const std::vector<uint32_t>& part : parts) ids.insert(ids.end(), part.begin(), part.end());
    }
  }
  return py::make_tuple(to_array(std::move(ids)), to_array(std::move(offsets)));
}

// Token shards with the arrays that hold their memory.
struct Shards {
  Shards(const std::vector<py::array>& tokens, const Array<int64_t>& offsets, const Array<uint64_t>& keys,
         const Array<uint8_t>& domains, const std::optional<Array<int32_t>>& nodes,
         const std::optional<Array<int64_t>>& node_offsets)
      : held(tokens), offsets_held(offsets), keys_held(keys), domains_held(domains) {
    if (tokens.empty()) throw py::value_error("tokens: at least one shard is expected");
    view.starts.push_back(0);
    for (const py::array& shard : tokens) {
      const bool narrow = py::isinstance<py::array_t<uint16_t>>(shard);
      if ((!narrow && !py::isinstance<py::array_t<uint32_t>>(shard)) || shard.ndim() != 1 ||
          shard.strides(0) != shard.itemsize()) {
        throw py::type_error("tokens: contiguous one-dimensional uint16 or uint32 arrays are expected");
      }
      if (view.tokens.empty()) view.token_bytes = narrow ? 2 : 4;
      if (view.token_bytes != shard.itemsize()) throw py::type_error("tokens: all shards must have one dtype");
      view.tokens.push_back(shard.data());
      view.starts.push_back(view.starts.back() + shard.size());
    }
    if (offsets.size() != keys.size() + 1 || domains.size() != keys.size()) {
      throw py::value_error("offsets, keys, domains: one entry a document (offsets: one more) is expected");
    }
    const int64_t* const at = offsets.data();
    for (py::ssize_t i = 0; i < keys.size(); ++i) {
      const bool ordered = at[i] <= at[i + 1] && at[0] == 0 && at[i + 1] <= view.starts.back();
      if (!ordered) throw py::value_error("offsets: ascending numbers of tokens are expected");
      if (at[i] < at[i + 1] && view.shard_of(at[i]) != view.shard_of(at[i + 1] - 1)) {
        throw py::value_error("offsets: document " + std::to_string(i) + " crosses a shard's end");
      }
    }
    view.offsets = ::view(offsets_held);
    view.keys = ::view(keys_held);
    view.domains = ::view(domains_held);
    if (!nodes || !node_offsets) return;
    nodes_held = *nodes;
    node_offsets_held = *node_offsets;
    static_assert(sizeof(mify::SyntaxNode) == 2 * sizeof(int32_t));
    const auto num_nodes = static_cast<int64_t>(nodes_held.size() / 2);
    const std::span<const int64_t> bounds = ::view(node_offsets_held);
    if (nodes_held.size() % 2 != 0 || node_offsets_held.size() != offsets.size() || bounds.front() != 0 ||
        bounds.back() != num_nodes || !std::ranges::is_sorted(bounds)) {
      throw py::value_error("nodes, node_offsets: pairs, and ascending numbers of them, one more than documents");
    }
    view.nodes = {reinterpret_cast<const mify::SyntaxNode*>(nodes_held.data()), static_cast<size_t>(num_nodes)};
    view.node_offsets = bounds;
  }

  std::vector<py::array> held;
  Array<int64_t> offsets_held;
  Array<uint64_t> keys_held;
  Array<uint8_t> domains_held;
  Array<int32_t> nodes_held;
  Array<int64_t> node_offsets_held;
  mify::ShardsView view;
};

py::tuple plan_window(const mify::Bpe& bpe, const Shards& shards, const Array<int64_t>& documents, int32_t context,
                      int32_t max_pieces, uint64_t seed, uint32_t epoch, uint32_t window, uint64_t corpus_key,
                      uint64_t fim_domains, uint64_t rate_threshold, uint64_t spm_threshold, const std::string& cuts,
                      const std::array<uint32_t, 4>& sentinels, int64_t file_separator, unsigned threads) {
  mify::WindowOptions options;
  if (context <= mify::kFimRoom) throw py::value_error("context: more than " + std::to_string(mify::kFimRoom));
  if (epoch >= 1u << 24) throw py::value_error("epoch: below 2^24 is expected");
  options.context = context;
  options.max_pieces = max_pieces;
  options.seed = seed;
  options.epoch = epoch;
  options.window = window;
  options.corpus_key = corpus_key;
  options.fim = fim_domains != 0;
  options.fim_domains = fim_domains;
  options.fim_options.rate_threshold = rate_threshold;
  options.fim_options.spm_threshold = spm_threshold;
  if (cuts != "uniform" && cuts != "line" && cuts != "syntax") {
    throw py::value_error("cuts is '" + cuts + "'; it must be uniform, line or syntax");
  }
  options.fim_options.mode = cuts == "uniform" ? mify::CutMode::kUniform
                             : cuts == "line"  ? mify::CutMode::kLine
                                               : mify::CutMode::kNode;
  options.fim_options.prefix_id = sentinels[0];
  options.fim_options.middle_id = sentinels[1];
  options.fim_options.suffix_id = sentinels[2];
  options.fim_options.end_of_text_id = sentinels[3];
  options.fim_options.file_separator_id = file_separator;
  options.threads = threads;
  const std::span<const int64_t> chosen = view(documents);
  mify::WindowPlan plan;
  {
    const py::gil_scoped_release release;
    plan = mify::plan_window(bpe, shards.view, chosen, options);
  }
  py::dict counts;
  counts["fragments"] = plan.counts.fragments;
  counts["psm"] = plan.counts.psm;
  counts["spm"] = plan.counts.spm;
  counts["plain_no_room"] = plan.counts.plain_no_room;
  counts["plain_no_boundary"] = plan.counts.plain_no_boundary;
  counts["plain_no_text"] = plan.counts.plain_no_text;
  counts["source_tokens"] = plan.counts.source_tokens;
  counts["tokens"] = plan.counts.tokens;
  py::dict out;
  out["bin_starts"] = to_array(std::move(plan.bin_starts));
  out["piece_document"] = to_array(std::move(plan.piece_document));
  out["piece_fragment"] = to_array(std::move(plan.piece_fragment));
  out["piece_mode"] = to_array(std::move(plan.piece_mode));
  out["piece_middle"] = to_array(std::move(plan.piece_middle));
  out["span_starts"] = to_array(std::move(plan.span_starts));
  out["span_source"] = to_array(std::move(plan.spans.source));
  out["span_length"] = to_array(std::move(plan.spans.length));
  out["patches"] = to_array(std::move(plan.spans.patches));
  return py::make_tuple(out, counts);
}

// `plan` holds the arrays that plan_window returned, in the order of PlanView.
py::tuple make_rows(const Shards& shards, const Array<int64_t>& bin_starts, const Array<int64_t>& piece_document,
                    const Array<int64_t>& span_starts, const Array<int64_t>& span_source,
                    const Array<uint8_t>& piece_mode, const Array<int32_t>& piece_middle,
                    const Array<int32_t>& span_length, const Array<uint32_t>& patches, const Array<int64_t>& bins,
                    int64_t context, uint32_t pad_id, std::vector<uint32_t> sentinels, bool middle_only,
                    const Array<uint64_t>& skip, unsigned threads) {
  const mify::PlanView plan{view(bin_starts), view(piece_document), view(span_starts), view(span_source),
                            view(piece_mode), view(piece_middle),   view(span_length), view(patches)};
  const auto pieces = static_cast<int64_t>(plan.piece_document.size());
  const auto starts = static_cast<int64_t>(plan.span_starts.size());
  if (context < 1) throw py::value_error("context: a positive number is expected");
  if (plan.bin_starts.empty() || starts != pieces + 1 || plan.span_length.size() != plan.span_source.size() ||
      static_cast<int64_t>(plan.piece_mode.size()) != pieces ||
      static_cast<int64_t>(plan.piece_middle.size()) != pieces) {
    throw py::value_error("the plan's arrays do not fit one another");
  }
  mify::RowOptions options;
  options.context = context;
  options.pad_id = pad_id;
  options.sentinels = std::move(sentinels);
  options.loss_on_middle_only = middle_only;
  options.skip = view(skip);
  options.threads = threads;
  const py::ssize_t rows = bins.size();
  const py::dtype dtype = shards.view.token_bytes == 2 ? py::dtype::of<uint16_t>() : py::dtype::of<uint32_t>();
  py::array tokens(dtype, std::vector<py::ssize_t>{rows, context});
  Array<uint8_t> loss_bits(std::vector<py::ssize_t>{rows, (context + 7) / 8});
  Array<int32_t> used(rows);
  std::vector<int32_t> segment_starts;
  std::vector<int64_t> row_starts{0};
  void* const to = tokens.mutable_data();
  uint8_t* const bits = loss_bits.mutable_data();
  int32_t* const counts = used.mutable_data();
  const std::span<const int64_t> chosen = view(bins);
  {
    const py::gil_scoped_release release;
    mify::make_rows(plan, shards.view, chosen, options, to, bits, counts, segment_starts, row_starts);
  }
  return py::make_tuple(tokens, loss_bits, to_array(std::move(segment_starts)), to_array(std::move(row_starts)), used);
}

}  // namespace

void bind_packing(py::module_& m) {
  py::class_<mify::Bpe>(m, "Bpe", "A byte-level BPE with the qwen2 pre-tokenizer.")
      .def(py::init(&make_bpe), py::arg("token_bytes"), py::arg("is_special"), py::arg("merge_left"),
           py::arg("merge_right"), py::arg("merge_result"), py::arg("byte_ids"), py::arg("ignore_merges") = false)
      .def_property_readonly("vocab_size", &mify::Bpe::vocab_size)
      .def("encode_batch", &encode_batch, py::arg("texts"), py::arg("threads") = 1,
           "(ids uint32, offsets int64 (len(texts) + 1)): text i has ids[offsets[i]:offsets[i + 1]].");
  py::class_<mify::WordCounts>(m, "WordCounts", "Pre-tokens (qwen2 pattern) and how often each occurs.")
      .def(py::init())
      .def("add", &count_words, py::arg("texts"), py::arg("threads") = 1)
      .def("__len__", &mify::WordCounts::size);
  m.def(
      "train_bpe", &train_bpe, py::arg("words"), py::arg("vocab_size"), py::arg("first_id"), py::arg("bytes"),
      "(tokens, merge_left, merge_right, merge_result): the merged tokens from id first_id + 256 on, and the merges.");
  py::class_<Shards>(m, "Shards", "Token shards as the plan and the rows read them; keeps the arrays alive.")
      .def(py::init<const std::vector<py::array>&, const Array<int64_t>&, const Array<uint64_t>&, const Array<uint8_t>&,
                    const std::optional<Array<int32_t>>&, const std::optional<Array<int64_t>>&>(),
           py::arg("tokens"), py::arg("offsets"), py::arg("keys"), py::arg("domains"), py::arg("nodes") = py::none(),
           py::arg("node_offsets") = py::none());
  m.def("plan_window", &plan_window, py::arg("bpe"), py::arg("shards"), py::arg("documents"), py::kw_only(),
        py::arg("context"), py::arg("max_pieces"), py::arg("seed"), py::arg("epoch"), py::arg("window"),
        py::arg("corpus_key"), py::arg("fim_domains"), py::arg("rate_threshold"), py::arg("spm_threshold"),
        py::arg("cuts"), py::arg("sentinels"), py::arg("file_separator"), py::arg("threads") = 1);
  m.def("make_rows", &make_rows, py::arg("shards"), py::arg("bin_starts"), py::arg("piece_document"),
        py::arg("span_starts"), py::arg("span_source"), py::arg("piece_mode"), py::arg("piece_middle"),
        py::arg("span_length"), py::arg("patches"), py::arg("bins"), py::kw_only(), py::arg("context"),
        py::arg("pad_id"), py::arg("sentinels"), py::arg("middle_only"), py::arg("skip"), py::arg("threads") = 1);
  m.def(
      "best_fit_decreasing",
      [](const Array<int32_t>& lengths, int32_t capacity, int32_t max_pieces) {
        const std::span<const int32_t> pieces = view(lengths);
        mify::Bins bins;
        {
          const py::gil_scoped_release release;
          bins = mify::best_fit_decreasing(pieces, capacity, max_pieces);
        }
        return py::make_tuple(to_array(std::move(bins.starts)), to_array(std::move(bins.pieces)));
      },
      py::arg("lengths"), py::arg("capacity"), py::arg("max_pieces"),
      "(starts int64 (bins + 1), pieces int32): bin b has pieces[starts[b]:starts[b + 1]].");
  m.def(
      "permutation",
      [](uint64_t size, uint64_t seed, uint32_t epoch, uint64_t corpus, uint32_t window, uint32_t purpose, uint64_t low,
         uint64_t high) {
        if (low > high || high > size) throw py::value_error("low <= high <= size is expected");
        const mify::Permutation order(size, seed, epoch, corpus, window, static_cast<mify::Purpose>(purpose));
        std::vector<int64_t> out(high - low);
        for (uint64_t i = low; i < high; ++i) out[i - low] = static_cast<int64_t>(order(i));
        return to_array(std::move(out));
      },
      py::arg("size"), py::arg("seed"), py::arg("epoch"), py::arg("corpus"), py::arg("window"), py::arg("purpose"),
      py::arg("low"), py::arg("high"), "The images of low .. high - 1 under the keyed permutation of 0 .. size - 1.");
  m.def(
      "philox",
      [](const std::array<uint32_t, 4>& counter, const std::array<uint32_t, 2>& key) {
        return mify::philox(counter, key[0], key[1]);
      },
      py::arg("counter"), py::arg("key"), "Philox 4x32-10.");
  m.def(
      "pre_tokens",
      [](const std::string& text) {
        std::vector<int64_t> ends;
        mify::PreTokenizer pre_tokenizer(reinterpret_cast<const uint8_t*>(text.data()), text.size());
        for (size_t at = 0; at < text.size();) {
          at = pre_tokenizer.next(at);
          ends.push_back(static_cast<int64_t>(at));
        }
        return to_array(std::move(ends));
      },
      py::arg("text"), "Where each pre-token of the text ends, in UTF-8 bytes.");
  m.def(
      "character_classes",
      [] {
        std::vector<uint8_t> out(0x110000);
        const mify::CharacterClasses& classes = mify::CharacterClasses::get();
        for (uint32_t code = 0; code < out.size(); ++code) out[code] = classes.of(code);
        return to_array(std::move(out));
      },
      "(0x110000,) 0 other, 1 letter, 2 number, 3 white space.");
}
