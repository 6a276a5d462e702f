// mify._core.minhash: texts and arrays in, arrays out. Checks and GIL release only; the work is in csrc/minhash,
// csrc/text.
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "minhash/digests.hpp"
#include "minhash/permute.hpp"
#include "minhash/star.hpp"
#include "minhash_arguments.hpp"
#include "text/ngram_index.hpp"
#include "text/order.hpp"
#include "text/unicode.hpp"
#include "text/words.hpp"

using namespace mify::bindings;

namespace {

py::array empty_signatures(size_t count, const mify::SignatureConfig& config) {
  const py::dtype dtype = mify::value_bytes(config.scheme) == 8 ? py::dtype::of<uint64_t>() : py::dtype::of<uint32_t>();
  return py::array(dtype, {static_cast<py::ssize_t>(count), static_cast<py::ssize_t>(config.num_perm)});
}

void sign(const Texts& texts, const mify::SignatureConfig& config, unsigned threads, py::array& values,
          Array<uint64_t>& num_shingles, Array<uint64_t>& invalid_bytes) {
  const size_t count = texts.views.size();
  const mify::SignatureTable table = signature_table(values);
  if (table.num_documents != count || table.num_perm != config.num_perm ||
      table.value_bytes != mify::value_bytes(config.scheme)) {
    throw py::value_error("values must hold a row of the configuration's size and type for each text");
  }
  if (static_cast<size_t>(num_shingles.size()) != count || static_cast<size_t>(invalid_bytes.size()) != count) {
    throw py::value_error("num_shingles and invalid_bytes must hold one count a text");
  }
  uint8_t* const values_out = static_cast<uint8_t*>(values.mutable_data());
  uint64_t* const shingles_out = num_shingles.mutable_data();
  uint64_t* const invalid_out = invalid_bytes.mutable_data();
  const py::gil_scoped_release release;
  mify::ThreadTeam team(threads);
  mify::sign_all(texts.views, config, team, values_out, shingles_out, invalid_out);
}

py::tuple ascending(const Texts& texts) {
  mify::Ascending found;
  {
    const py::gil_scoped_release release;
    found = mify::ascending(texts.views);
  }
  return py::make_tuple(array_of(found.order), found.repeated);
}

py::array signatures_of_hashes(const Array<uint64_t>& hashes, const Array<uint64_t>& offsets,
                               const mify::SignatureConfig& config) {
  if (offsets.ndim() != 1 || offsets.size() < 1) throw py::value_error("offsets must be one-dimensional, not empty");
  const size_t count = static_cast<size_t>(offsets.size()) - 1;
  const uint64_t* const at = offsets.data();
  for (size_t i = 0; i < count; ++i) {
    if (at[i + 1] < at[i] || at[i + 1] > static_cast<uint64_t>(hashes.size())) {
      throw py::value_error("offsets must ascend and lie in hashes");
    }
  }
  py::array out = empty_signatures(count, config);
  uint8_t* const values = static_cast<uint8_t*>(out.mutable_data());
  const uint64_t* const data = hashes.data();
  const size_t row = config.num_perm * mify::value_bytes(config.scheme);
  const py::gil_scoped_release release;
  mify::Signer signer(config);
  for (size_t i = 0; i < count; ++i) signer.sign_hashes({data + at[i], at[i + 1] - at[i]}, values + i * row);
  return out;
}

Array<uint64_t> shingle_hashes(const py::object& text, uint32_t ngram, bool lowercase, const std::string& hash) {
  std::vector<py::object> owners;
  const std::string_view view = view_of(text, owners);
  mify::Shingler shingler(shingle_config(ngram, lowercase, hash));
  std::vector<uint64_t> hashes;
  shingler.start(view);
  for (auto block = shingler.next(); !block.empty(); block = shingler.next()) {
    hashes.insert(hashes.end(), block.begin(), block.end());
  }
  return array_of(hashes);
}

Array<int64_t> word_spans(const py::object& text) {
  std::vector<py::object> owners;
  std::vector<int64_t> spans;
  mify::for_each_word(view_of(text, owners), [&](size_t begin, size_t end) {
    spans.push_back(static_cast<int64_t>(begin));
    spans.push_back(static_cast<int64_t>(end));
  });
  return array_of(spans).reshape({-1, 2});
}

py::tuple lsh_clusters(const py::array& signatures, const Array<uint64_t>& num_shingles, size_t num_bands,
                       size_t rows_per_band, unsigned threads) {
  const mify::SignatureTable table = table_of(signatures, num_shingles, num_bands, rows_per_band);
  Array<int64_t> labels(signatures.shape(0));
  int64_t* const out = labels.mutable_data();
  size_t num_buckets = 0;
  {
    const py::gil_scoped_release release;
    mify::ThreadTeam team(threads);
    const mify::Buckets buckets = mify::lsh_buckets(table, num_bands, rows_per_band, team);
    num_buckets = buckets.size();
    mify::UnionFind clusters(table.num_documents);
    for (size_t i = 0; i < buckets.size(); ++i) {
      for (uint64_t at = buckets.offsets[i] + 1; at < buckets.offsets[i + 1]; ++at) {
        clusters.unite(buckets.members[buckets.offsets[i]], buckets.members[at]);
      }
    }
    for (size_t i = 0; i < table.num_documents; ++i) out[i] = static_cast<int64_t>(clusters.find(i));
  }
  return py::make_tuple(labels, num_buckets);
}

py::dict greedy_star(const Texts& texts, const mify::SignatureConfig& config, const py::array& signatures,
                     const Array<uint64_t>& num_shingles, size_t num_bands, size_t rows_per_band, double threshold,
                     bool verify, size_t min_matches, size_t bucket_cap, uint64_t seed, unsigned threads) {
  const mify::SignatureTable table = table_of(signatures, num_shingles, num_bands, rows_per_band);
  if (verify && texts.views.size() != table.num_documents) throw py::value_error("one text a signature is needed");
  if (!(threshold > 0 && threshold <= 1)) throw py::value_error("threshold must be above 0 and at most 1");
  if (bucket_cap == 0) throw py::value_error("bucket_cap must be at least 1");
  mify::StarConfig star;
  star.threshold = threshold;
  star.verify = verify;
  star.min_matches = min_matches;
  star.bucket_cap = bucket_cap;
  star.seed = seed;
  mify::StarResult result;
  {
    const py::gil_scoped_release release;
    mify::ThreadTeam team(threads);
    mify::Buckets buckets = mify::lsh_buckets(table, num_bands, rows_per_band, team);
    result = mify::greedy_star(texts.views, config.shingles, table, std::move(buckets), star, team);
  }
  const py::ssize_t count = static_cast<py::ssize_t>(result.removals.size());
  Array<int64_t> removed(count), kept(count);
  Array<double> jaccard(count);
  for (py::ssize_t i = 0; i < count; ++i) {
    const mify::Removal& removal = result.removals[static_cast<size_t>(i)];
    removed.mutable_data()[i] = removal.removed;
    kept.mutable_data()[i] = removal.kept;
    jaccard.mutable_data()[i] = removal.jaccard;
  }
  py::dict out;
  out["removed"] = removed;
  out["kept"] = kept;
  out["jaccard"] = jaccard;
  out["cluster_ids"] = array_of(result.cluster_ids);
  out["buckets"] = result.num_buckets;
  out["candidate_pairs"] = result.candidate_pairs;
  out["verified_pairs"] = result.verified_pairs;
  out["capped_buckets"] = result.capped_buckets;
  out["skipped_pairs"] = result.skipped_pairs;
  out["sampled_pairs"] = result.sampled_pairs;
  out["sampled_lost"] = result.sampled_lost;
  return out;
}

double jaccard(const py::object& x, const py::object& y, uint32_t ngram, bool lowercase) {
  std::vector<py::object> owners;
  return mify::exact_jaccard(view_of(x, owners), view_of(y, owners), shingle_config(ngram, lowercase, "fast64"));
}

}  // namespace

void bind_minhash(py::module_& m) {
  py::class_<Texts>(m, "Texts", "Many texts, viewed where they lie, without a copy.")
      .def_static("from_list", &Texts::from_list, py::arg("texts"), "From a sequence of str or bytes.")
      .def_static("from_buffers", &Texts::from_buffers<int32_t>, py::arg("data"), py::arg("offsets").noconvert())
      .def_static("from_buffers", &Texts::from_buffers<int64_t>, py::arg("data"), py::arg("offsets").noconvert(),
                  "From Arrow's buffers: text i is data[offsets[i]:offsets[i + 1]]; offsets int32 or int64.")
      .def_static("join", &Texts::join, py::arg("parts"), "The texts of all parts, in order.")
      .def("take", &Texts::take, py::arg("order"), "The texts at the given indices (int64), in that order.")
      .def("ascending", &ascending,
           "(indices (N,) int64 in the order of the texts' bytes, the first place whose text comes again next or -1).")
      .def_property_readonly("num_bytes", &Texts::num_bytes)
      .def("__len__", [](const Texts& texts) { return texts.views.size(); });

  py::class_<mify::SignatureConfig>(m, "SignatureConfig", "How texts become signatures.")
      .def(py::init(&signature_config), py::kw_only(), py::arg("ngram"), py::arg("lowercase"), py::arg("hash"),
           py::arg("scheme"), py::arg("num_perm"), py::arg("seed"), py::arg("a"), py::arg("b"));

  m.def("sign", &sign, py::arg("texts"), py::arg("config"), py::arg("threads"), py::arg("values").noconvert(),
        py::arg("num_shingles").noconvert(), py::arg("invalid_bytes").noconvert(),
        "Writes the signatures (N, num_perm), the shingles and the invalid bytes of each text (N,) uint64.");
  m.def("signatures_of_hashes", &signatures_of_hashes, py::arg("hashes"), py::arg("offsets"), py::arg("config"),
        "Signatures (N, num_perm) of shingle hashes (uint64); set i is hashes[offsets[i]:offsets[i + 1]].");
  m.def("shingle_hashes", &shingle_hashes, py::arg("text"), py::arg("ngram"), py::arg("lowercase"), py::arg("hash"),
        "The 64-bit hashes of a text's shingles, in order, with repetitions.");
  m.def("word_spans", &word_spans, py::arg("text"), "(words, 2) int64: begin and end of each word, in bytes.");
  m.def("lsh_clusters", &lsh_clusters, py::arg("signatures"), py::arg("num_shingles"), py::arg("num_bands"),
        py::arg("rows_per_band"), py::arg("threads"),
        "(smallest document of each document's cluster (N,) int64, buckets): all that share a bucket are joined.");
  m.def("greedy_star", &greedy_star, py::arg("texts"), py::arg("config"), py::arg("signatures"),
        py::arg("num_shingles"), py::kw_only(), py::arg("num_bands"), py::arg("rows_per_band"), py::arg("threshold"),
        py::arg("verify"), py::arg("min_matches"), py::arg("bucket_cap"), py::arg("seed"), py::arg("threads"),
        "Removed and kept documents with their similarity, cluster ids, and what was looked at.");
  m.def("jaccard", &jaccard, py::arg("x"), py::arg("y"), py::arg("ngram"), py::arg("lowercase"),
        "Exact Jaccard similarity of two texts' shingle sets; 0 where one has no word.");
  m.def(
      "sha1_prefix64",
      [](const py::bytes& data) {
        const std::string_view view = data;
        return mify::sha1_prefix64(reinterpret_cast<const uint8_t*>(view.data()), view.size());
      },
      py::arg("data"), "The first 8 bytes of the SHA-1 digest, little-endian.");
  m.def(
      "xxh32",
      [](const py::bytes& data) {
        const std::string_view view = data;
        return mify::xxh32(reinterpret_cast<const uint8_t*>(view.data()), view.size());
      },
      py::arg("data"), "XXH32 with seed 0.");
  m.def(
      "kernel_name", [] { return mify::permute_kernels().name; },
      "The permutation kernels in use: scalar, avx2 or avx512.");
  m.attr("UNICODE_VERSION") = mify::unicode_version();

  py::class_<mify::NgramIndex>(m, "NgramIndex", "Word n-grams of benchmark texts; see csrc/text/ngram_index.hpp.")
      .def(py::init<uint32_t, uint32_t, uint32_t>(), py::arg("n"), py::arg("min_words"), py::arg("min_named_words"))
      .def(
          "add",
          [](mify::NgramIndex& index, const py::object& text) {
            std::vector<py::object> owners;
            return index.add(view_of(text, owners));
          },
          py::arg("text"), "Adds a text; returns its number.")
      .def(
          "match",
          [](const mify::NgramIndex& index, const py::object& text) {
            std::vector<py::object> owners;
            const std::string_view view = view_of(text, owners);
            std::vector<mify::NgramMatch> matches;
            {
              const py::gil_scoped_release release;
              matches = index.match(view);
            }
            py::list out;
            for (const mify::NgramMatch& match : matches)
              out.append(py::make_tuple(match.begin, match.end, match.entry));
            return out;
          },
          py::arg("text"), "[(begin, end, entry)]: byte spans of the text that stand in an added text.")
      .def_property_readonly("num_entries", &mify::NgramIndex::num_entries)
      .def_property_readonly("num_ngrams", &mify::NgramIndex::num_ngrams)
      .def_property_readonly("num_short_texts", &mify::NgramIndex::num_short_texts)
      .def_property_readonly("num_unindexed_texts", &mify::NgramIndex::num_unindexed_texts)
      .def_property_readonly("num_unnamed_ngrams", &mify::NgramIndex::num_unnamed_ngrams);
}
