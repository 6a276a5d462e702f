// mify._core.minhash: texts and arrays in, arrays out. Checks and GIL release only; the work is in csrc/minhash,
// csrc/text.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <limits>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "minhash/digests.hpp"
#include "minhash/lsh.hpp"
#include "minhash/permute.hpp"
#include "minhash/shingles.hpp"
#include "minhash/signature.hpp"
#include "minhash/star.hpp"
#include "text/ngram_index.hpp"
#include "text/unicode.hpp"
#include "text/words.hpp"

namespace py = pybind11;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;

// The UTF-8 of a str (without a copy) or the bytes of a bytes object, which `owner` keeps alive. A str with lone
// surrogates has no UTF-8; it is taken in the form that encodes them, which the tokenizer counts as invalid bytes.
std::string_view view_of(py::handle text, std::vector<py::object>& owners) {
  if (PyUnicode_Check(text.ptr())) {
    Py_ssize_t size = 0;
    if (const char* data = PyUnicode_AsUTF8AndSize(text.ptr(), &size)) return {data, static_cast<size_t>(size)};
    PyErr_Clear();
    PyObject* encoded = PyUnicode_AsEncodedString(text.ptr(), "utf-8", "surrogatepass");
    if (encoded == nullptr) throw py::error_already_set();
    owners.push_back(py::reinterpret_steal<py::object>(encoded));
    return {PyBytes_AS_STRING(encoded), static_cast<size_t>(PyBytes_GET_SIZE(encoded))};
  }
  if (PyBytes_Check(text.ptr())) {
    return {PyBytes_AS_STRING(text.ptr()), static_cast<size_t>(PyBytes_GET_SIZE(text.ptr()))};
  }
  throw py::type_error("texts must be str or bytes, not " + std::string(py::str(py::type::of(text).attr("__name__"))));
}

// Many texts, viewed where they lie.
struct Texts {
  std::vector<std::string_view> views;
  std::vector<py::object> owners;

  static Texts from_list(const py::sequence& sequence) {
    Texts texts;
    const size_t count = sequence.size();
    if (count >= std::numeric_limits<uint32_t>::max()) throw py::value_error("at most 2^32 - 2 texts at once");
    // A list or tuple of its own holds every element alive, whatever the caller does to the sequence.
    const py::tuple held(sequence);
    texts.owners.push_back(held);
    texts.views.reserve(count);
    for (const py::handle text : held) texts.views.push_back(view_of(text, texts.owners));
    return texts;
  }

  // Arrow's layout: text i is data[offsets[i], offsets[i + 1]).
  template <class Offset>
  static Texts from_buffers(const py::buffer& data, const Array<Offset>& offsets) {
    Texts texts;
    const py::buffer_info info = data.request();
    const size_t size = static_cast<size_t>(info.size) * static_cast<size_t>(info.itemsize);
    if (offsets.ndim() != 1 || offsets.size() < 1) throw py::value_error("offsets must be one-dimensional, not empty");
    const size_t count = static_cast<size_t>(offsets.size()) - 1;
    if (count >= std::numeric_limits<uint32_t>::max()) throw py::value_error("at most 2^32 - 2 texts at once");
    const Offset* const at = offsets.data();
    const char* const bytes = static_cast<const char*>(info.ptr);
    texts.views.reserve(count);
    for (size_t i = 0; i < count; ++i) {
      if (at[i] < 0 || at[i + 1] < at[i] || static_cast<uint64_t>(at[i + 1]) > size) {
        throw py::value_error("offsets[" + std::to_string(i) + "] do not lie in the data in ascending order");
      }
      texts.views.emplace_back(bytes + at[i], static_cast<size_t>(at[i + 1] - at[i]));
    }
    texts.owners = {data, offsets};
    return texts;
  }

  Texts take(const Array<int64_t>& order) const {
    Texts texts;
    texts.owners = owners;
    texts.views.reserve(static_cast<size_t>(order.size()));
    for (py::ssize_t i = 0; i < order.size(); ++i) {
      const int64_t from = order.data()[i];
      if (from < 0 || static_cast<size_t>(from) >= views.size()) throw py::index_error("index out of range");
      texts.views.push_back(views[static_cast<size_t>(from)]);
    }
    return texts;
  }

  static Texts join(const std::vector<const Texts*>& parts) {
    Texts texts;
    for (const Texts* part : parts) {
      texts.views.insert(texts.views.end(), part->views.begin(), part->views.end());
      texts.owners.insert(texts.owners.end(), part->owners.begin(), part->owners.end());
    }
    if (texts.views.size() >= std::numeric_limits<uint32_t>::max()) {
      throw py::value_error("at most 2^32 - 2 texts at once");
    }
    return texts;
  }

  uint64_t num_bytes() const {
    uint64_t total = 0;
    for (const std::string_view view : views) total += view.size();
    return total;
  }
};

mify::ShingleConfig shingle_config(uint32_t ngram, bool lowercase, const std::string& hash) {
  mify::ShingleConfig config;
  if (ngram == 0 || ngram > mify::kMaxNgram) throw py::value_error("ngram must be from 1 to 64");
  config.ngram = ngram;
  config.lowercase = lowercase;
  if (hash == "fast64") {
    config.hash = mify::ShingleHash::kFast64;
  } else if (hash == "sha1") {
    config.hash = mify::ShingleHash::kSha1;
  } else if (hash == "xxh32") {
    config.hash = mify::ShingleHash::kXxh32;
  } else {
    throw py::value_error("hash must be 'fast64', 'sha1' or 'xxh32', not '" + hash + "'");
  }
  return config;
}

mify::SignatureConfig signature_config(uint32_t ngram, bool lowercase, const std::string& hash,
                                       const std::string& scheme, uint32_t num_perm, uint64_t seed,
                                       const Array<uint64_t>& a, const Array<uint64_t>& b) {
  mify::SignatureConfig config;
  config.shingles = shingle_config(ngram, lowercase, hash);
  if (scheme == "affine32") {
    config.scheme = mify::Scheme::kAffine32;
  } else if (scheme == "affine64") {
    config.scheme = mify::Scheme::kAffine64;
  } else if (scheme == "legacy") {
    config.scheme = mify::Scheme::kLegacy;
  } else if (scheme == "one_permutation") {
    config.scheme = mify::Scheme::kOnePermutation;
  } else {
    throw py::value_error("scheme must be 'affine32', 'affine64', 'legacy' or 'one_permutation', not '" + scheme + "'");
  }
  if (num_perm == 0 || num_perm > 65536) throw py::value_error("num_perm must be from 1 to 65536");
  config.num_perm = num_perm;
  config.seed = seed;
  if (config.scheme != mify::Scheme::kOnePermutation) {
    if (a.size() != num_perm || b.size() != num_perm) throw py::value_error("a and b must hold num_perm values each");
    config.a.assign(a.data(), a.data() + a.size());
    config.b.assign(b.data(), b.data() + b.size());
  }
  return config;
}

py::array empty_signatures(size_t count, const mify::SignatureConfig& config) {
  const py::dtype dtype = mify::value_bytes(config.scheme) == 8 ? py::dtype::of<uint64_t>() : py::dtype::of<uint32_t>();
  return py::array(dtype, {static_cast<py::ssize_t>(count), static_cast<py::ssize_t>(config.num_perm)});
}

template <class T>
Array<T> array_of(const std::vector<T>& values) {
  return Array<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

py::tuple signatures(const Texts& texts, const mify::SignatureConfig& config, unsigned threads) {
  const size_t count = texts.views.size();
  py::array out = empty_signatures(count, config);
  Array<uint64_t> num_shingles(static_cast<py::ssize_t>(count)), invalid(static_cast<py::ssize_t>(count));
  uint8_t* const values = static_cast<uint8_t*>(out.mutable_data());
  uint64_t* const shingles_out = num_shingles.mutable_data();
  uint64_t* const invalid_out = invalid.mutable_data();
  {
    const py::gil_scoped_release release;
    mify::ThreadTeam team(threads);
    mify::sign_all(texts.views, config, team, values, shingles_out, invalid_out);
  }
  return py::make_tuple(out, num_shingles, invalid);
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

// A view of a two-dimensional signature array, checked.
mify::SignatureTable table_of(const py::array& signatures, const Array<uint64_t>& num_shingles, size_t num_bands,
                              size_t rows_per_band) {
  const py::dtype dtype = signatures.dtype();
  const bool native = dtype.kind() == 'u' && dtype.byteorder() == '=';
  const bool narrow = native && dtype.itemsize() == 4;
  const bool wide = native && dtype.itemsize() == 8;
  if (signatures.ndim() != 2 || !(narrow || wide) || (signatures.flags() & py::array::c_style) == 0) {
    throw py::value_error("signatures must be a C-contiguous two-dimensional array of uint32 or uint64");
  }
  mify::SignatureTable table;
  table.values = static_cast<const uint8_t*>(signatures.data());
  table.num_documents = static_cast<size_t>(signatures.shape(0));
  table.num_perm = static_cast<size_t>(signatures.shape(1));
  table.value_bytes = narrow ? 4 : 8;
  if (num_bands == 0 || rows_per_band == 0 || num_bands > table.num_perm / rows_per_band) {
    throw py::value_error("num_bands * rows_per_band must be from 1 to the number of signature values, " +
                          std::to_string(table.num_perm));
  }
  if (table.num_documents >= std::numeric_limits<uint32_t>::max()) throw py::value_error("at most 2^32 - 2 documents");
  if (static_cast<size_t>(num_shingles.size()) != table.num_documents) {
    throw py::value_error("num_shingles must hold one count a document");
  }
  table.num_shingles = num_shingles.data();
  return table;
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
      .def_property_readonly("num_bytes", &Texts::num_bytes)
      .def("__len__", [](const Texts& texts) { return texts.views.size(); });

  py::class_<mify::SignatureConfig>(m, "SignatureConfig", "How texts become signatures.")
      .def(py::init(&signature_config), py::kw_only(), py::arg("ngram"), py::arg("lowercase"), py::arg("hash"),
           py::arg("scheme"), py::arg("num_perm"), py::arg("seed"), py::arg("a"), py::arg("b"));

  m.def("signatures", &signatures, py::arg("texts"), py::arg("config"), py::arg("threads"),
        "(values (N, num_perm), shingles a text (N,) uint64, invalid bytes a text (N,) uint64).");
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
