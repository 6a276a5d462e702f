// mify._core.minhash, the parts for corpora in shards: runs, candidate pairs, their verification, the star over them.
#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "minhash/runs.hpp"
#include "minhash/star_pass.hpp"
#include "minhash/verify.hpp"
#include "minhash_arguments.hpp"

using namespace mify::bindings;

namespace {

// (n, 2) uint64, row by row as mify::RunEntry and mify::CandidatePair lie in memory.
Array<uint64_t> two_columns(const void* rows, size_t count) {
  Array<uint64_t> out({static_cast<py::ssize_t>(count), py::ssize_t{2}});
  if (count > 0) std::copy_n(static_cast<const uint64_t*>(rows), 2 * count, out.mutable_data());
  return out;
}

Array<uint64_t> band_runs(const py::array& signatures, const Array<uint64_t>& num_shingles,
                          const Array<uint64_t>& documents, size_t num_bands, size_t rows_per_band, unsigned threads) {
  const mify::SignatureTable table = table_of(signatures, num_shingles, num_bands, rows_per_band);
  if (static_cast<size_t>(documents.size()) != table.num_documents) {
    throw py::value_error("documents must hold one code a signature");
  }
  const size_t count = mify::num_bucketed(table);
  Array<uint64_t> out({static_cast<py::ssize_t>(num_bands), static_cast<py::ssize_t>(count), py::ssize_t{2}});
  auto* const entries = reinterpret_cast<mify::RunEntry*>(out.mutable_data());
  const py::gil_scoped_release release;
  mify::ThreadTeam team(threads);
  mify::band_runs(table, {documents.data(), table.num_documents}, num_bands, rows_per_band, team, entries);
  return out;
}

// Owns the entries that mify::BucketPairs looks at.
class OwnedBucketPairs {
 public:
  OwnedBucketPairs(const Array<uint64_t>& entries, size_t bucket_cap) {
    if (entries.ndim() != 2 || entries.shape(1) != 2) throw py::value_error("entries must be of shape (n, 2)");
    if (bucket_cap == 0) throw py::value_error("bucket_cap must be at least 1");
    const auto* const rows = reinterpret_cast<const mify::RunEntry*>(entries.data());
    entries_.assign(rows, rows + entries.shape(0));
    const py::gil_scoped_release release;
    pairs_ = std::make_unique<mify::BucketPairs>(entries_, bucket_cap);
  }

  Array<uint64_t> next(size_t limit) {
    std::vector<mify::CandidatePair> found;
    {
      const py::gil_scoped_release release;
      found = pairs_->next(limit);
    }
    return two_columns(found.data(), found.size());
  }
  uint64_t num_buckets() const { return pairs_->num_buckets(); }
  Array<uint64_t> capped() const { return two_columns(pairs_->capped().data(), pairs_->capped().size()); }

 private:
  std::vector<mify::RunEntry> entries_;
  std::unique_ptr<mify::BucketPairs> pairs_;
};

py::tuple similarities(const Texts& later_texts, const py::array& later_signatures, const Texts& earlier_texts,
                       const py::array& earlier_signatures, const Array<uint64_t>& later,
                       const Array<uint64_t>& earlier, const mify::SignatureConfig& config, double threshold,
                       bool verify, size_t min_matches, unsigned threads) {
  const mify::Part x{later_texts.views, signature_table(later_signatures)};
  const mify::Part y{earlier_texts.views, signature_table(earlier_signatures)};
  if (x.table.num_perm != y.table.num_perm || x.table.value_bytes != y.table.value_bytes) {
    throw py::value_error("signatures of two configurations cannot be compared");
  }
  if (later.size() != earlier.size()) throw py::value_error("later and earlier must be of one length");
  for (const auto& [rows, part] : {std::pair(&later, &x), std::pair(&earlier, &y)}) {
    const uint64_t count = verify ? part->texts.size() : part->table.num_documents;
    const uint64_t* const at = rows->data();
    if (count > part->table.num_documents ||
        std::any_of(at, at + rows->size(), [count](uint64_t row) { return row >= count; })) {
      throw py::index_error("a row of a pair is out of range");
    }
  }
  mify::Similarity similarity;
  similarity.threshold = threshold;
  similarity.verify = verify;
  similarity.min_matches = min_matches;
  Array<double> out(later.size());
  double* const values = out.mutable_data();
  const std::span rows{later.data(), static_cast<size_t>(later.size())};
  const std::span others{earlier.data(), static_cast<size_t>(earlier.size())};
  uint64_t computed = 0;
  {
    const py::gil_scoped_release release;
    mify::ThreadTeam team(threads);
    computed = mify::similarities(x, y, rows, others, config.shingles, similarity, team, values);
  }
  return py::make_tuple(out, computed);
}

py::tuple add_pairs(mify::StarPass& pass, const Array<uint64_t>& later, const Array<uint64_t>& earlier,
                    const Array<double>& jaccard) {
  if (later.size() != earlier.size() || later.size() != jaccard.size()) {
    throw py::value_error("later, earlier and jaccard must be of one length");
  }
  std::vector<mify::VerifiedPair> pairs(static_cast<size_t>(later.size()));
  for (size_t i = 0; i < pairs.size(); ++i) pairs[i] = {later.data()[i], earlier.data()[i], jaccard.data()[i]};
  std::vector<mify::PassRemoval> removals;
  {
    const py::gil_scoped_release release;
    removals = pass.add(pairs);
  }
  const py::ssize_t count = static_cast<py::ssize_t>(removals.size());
  Array<uint64_t> removed(count), kept(count);
  Array<double> similarity(count);
  for (py::ssize_t i = 0; i < count; ++i) {
    const mify::PassRemoval& removal = removals[static_cast<size_t>(i)];
    removed.mutable_data()[i] = removal.removed;
    kept.mutable_data()[i] = removal.kept;
    similarity.mutable_data()[i] = removal.jaccard;
  }
  return py::make_tuple(removed, kept, similarity);
}

// (documents from begin to end that are not alone in their cluster, the clusters of these).
py::tuple clusters(mify::StarPass& pass, uint64_t begin, uint64_t end) {
  if (begin > end || end > pass.num_documents()) throw py::index_error("documents out of range");
  std::vector<uint64_t> documents, found;
  {
    const py::gil_scoped_release release;
    for (uint64_t i = begin; i < end; ++i) {
      if (!pass.joined(i)) continue;
      documents.push_back(i);
      found.push_back(pass.cluster(i));
    }
  }
  return py::make_tuple(array_of(documents), array_of(found));
}

}  // namespace

void bind_runs(py::module_& m) {
  m.def("band_runs", &band_runs, py::arg("signatures"), py::arg("num_shingles"), py::arg("documents"),
        py::arg("num_bands"), py::arg("rows_per_band"), py::arg("threads"),
        "(num_bands, documents with a shingle, 2) uint64: (key of the band, code of the document), each band sorted.");
  py::class_<OwnedBucketPairs>(m, "BucketPairs", "Pairs of the documents that share a bucket; see runs.hpp.")
      .def(py::init<const Array<uint64_t>&, size_t>(), py::arg("entries"), py::arg("bucket_cap"))
      .def("next", &OwnedBucketPairs::next, py::arg("limit"),
           "(pairs, 2) uint64: later and earlier document; about `limit` pairs, none at the end.")
      .def_property_readonly("num_buckets", &OwnedBucketPairs::num_buckets)
      .def_property_readonly("capped", &OwnedBucketPairs::capped);
  m.def("similarities", &similarities, py::arg("later_texts"), py::arg("later_signatures"), py::arg("earlier_texts"),
        py::arg("earlier_signatures"), py::arg("later"), py::arg("earlier"), py::arg("config"), py::kw_only(),
        py::arg("threshold"), py::arg("verify"), py::arg("min_matches"), py::arg("threads"),
        "(similarity of each pair of rows, -1 below the threshold; how many were computed exactly).");
  py::class_<mify::StarPass>(m, "StarPass", "The star rule over verified pairs in order; see star_pass.hpp.")
      .def(py::init<uint64_t>(), py::arg("num_documents"))
      .def("add", &add_pairs, py::arg("later"), py::arg("earlier"), py::arg("jaccard"),
           "(removed, kept, similarity) that these pairs decide; pairs sorted, a document's all in one call.")
      .def("clusters", &clusters, py::arg("begin"), py::arg("end"),
           "(documents from begin to end that are not alone in their cluster, the clusters of these).");
}
