// What the bindings of csrc/minhash take: texts viewed where they lie, configurations and signature arrays, checked.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "minhash/lsh.hpp"
#include "minhash/shingles.hpp"
#include "minhash/signature.hpp"

namespace py = pybind11;

namespace mify::bindings {

template <class T>
using Array = py::array_t<T, py::array::c_style>;

// The UTF-8 of a str (without a copy) or the bytes of a bytes object, which `owner` keeps alive. A str with lone
// surrogates has no UTF-8; it is taken in the form that encodes them, which the tokenizer counts as invalid bytes.
inline std::string_view view_of(py::handle text, std::vector<py::object>& owners) {
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

inline mify::ShingleConfig shingle_config(uint32_t ngram, bool lowercase, const std::string& hash) {
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

inline mify::SignatureConfig signature_config(uint32_t ngram, bool lowercase, const std::string& hash,
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

template <class T>
Array<T> array_of(const std::vector<T>& values) {
  return Array<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

// A view of a two-dimensional signature array, checked; its num_shingles are not set.
inline mify::SignatureTable signature_table(const py::array& signatures) {
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
  if (table.num_documents >= std::numeric_limits<uint32_t>::max()) throw py::value_error("at most 2^32 - 2 documents");
  return table;
}

// The same, to be cut into bands.
inline mify::SignatureTable table_of(const py::array& signatures, const Array<uint64_t>& num_shingles, size_t num_bands,
                                     size_t rows_per_band) {
  mify::SignatureTable table = signature_table(signatures);
  if (num_bands == 0 || rows_per_band == 0 || num_bands > table.num_perm / rows_per_band) {
    throw py::value_error("num_bands * rows_per_band must be from 1 to the number of signature values, " +
                          std::to_string(table.num_perm));
  }
  if (static_cast<size_t>(num_shingles.size()) != table.num_documents) {
    throw py::value_error("num_shingles must hold one count a document");
  }
  table.num_shingles = num_shingles.data();
  return table;
}

}  // namespace mify::bindings
