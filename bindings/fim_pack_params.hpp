// FimPackParams from keyword arguments, for mify._core (host addresses) and mify._cuda (device addresses).
#pragma once

#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "packing/fim_pack.hpp"

// `spans`: for pack_spans, else for unpack_rows. Throws std::invalid_argument for an address or size that cannot be.
inline mify::FimPackParams fim_pack_params(const pybind11::dict& arguments, bool spans, int& token_bytes) {
  const auto number = [&](const char* name) {
    if (!arguments.contains(name)) throw std::invalid_argument(std::string(name) + " is missing");
    return arguments[name].cast<int64_t>();
  };
  const auto size = [&](const char* name, int64_t least, int64_t most) {
    const int64_t value = number(name);
    if (value < least || value > most) {
      throw std::invalid_argument(std::string(name) + " is " + std::to_string(value) + "; it must be " +
                                  std::to_string(least) + " to " + std::to_string(most));
    }
    return value;
  };
  mify::FimPackParams params;
  const int64_t most = INT32_MAX;
  token_bytes = static_cast<int>(number("token_bytes"));
  if (token_bytes != 2 && token_bytes != 4) throw std::invalid_argument("token_bytes must be 2 or 4");
  params.num_rows = size("num_rows", 0, most);
  params.context = size("context", 1, most);
  if (params.num_rows * params.context > most) {
    throw std::invalid_argument("num_rows * context must be below 2^31, since cu_seqlens is int32");
  }
  params.num_segments = size("num_segments", 0, most);
  params.cu_length = size("cu_length", 1, most);
  const auto address = [&]<class T>(T*& to, const char* name, bool may_be_null, int alignment) {
    const auto value = static_cast<uintptr_t>(number(name));
    if (value == 0 && !may_be_null) throw std::invalid_argument(std::string(name) + " is a null pointer");
    if (value % static_cast<uintptr_t>(alignment) != 0) {
      throw std::invalid_argument(std::string(name) + " is not aligned to " + std::to_string(alignment) + " bytes");
    }
    to = reinterpret_cast<T*>(value);
  };
  const bool empty = params.num_rows == 0;
  address(params.segment_starts, "segment_starts", empty || params.num_segments == 0, 4);
  address(params.segment_rows, "segment_rows", empty, 8);
  address(params.tokens, "tokens", empty, 16);
  address(params.labels, "labels", empty, 16);
  address(params.positions, "positions", empty, 16);
  address(params.cu_seqlens, "cu_seqlens", false, 4);
  if (!spans) {
    address(params.rows, "rows", empty, token_bytes);
    address(params.loss_bits, "loss_bits", empty, 1);
    return params;
  }
  params.num_spans = size("num_spans", 0, most);
  params.buffer_size = size("buffer_size", 0, INT64_MAX);
  params.patches_size = size("patches_size", 0, INT64_MAX);
  address(params.buffer, "buffer", params.buffer_size == 0, token_bytes);
  address(params.patches, "patches", params.patches_size == 0, token_bytes);
  address(params.span_source, "span_source", params.num_spans == 0, 8);
  address(params.span_starts, "span_starts", params.num_spans == 0, 4);
  address(params.span_rows, "span_rows", empty, 8);
  address(params.segment_loss, "segment_loss", params.num_segments == 0, 4);
  params.pad_id = size("pad_id", 0, UINT32_MAX);
  int place = 0;
  for (const pybind11::handle sentinel : arguments["sentinels"]) {
    if (place == mify::kMostSentinels) {
      throw std::invalid_argument("sentinels: at most " + std::to_string(mify::kMostSentinels) + " are expected");
    }
    params.sentinels[place++] = sentinel.cast<int64_t>();
  }
  return params;
}
