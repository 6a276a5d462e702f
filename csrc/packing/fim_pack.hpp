// From packed rows, or straight from token buffers, to what a model eats: tokens, labels, positions, cu_seqlens. On the
// host here, on a device in fim_pack.cu; both give the same bits as kernels/packing/fim_pack_ref.py.
#pragma once

#include <cstdint>

namespace mify {

// The source of a span that is padding: the pad id, without loss. Any other negative source is ~place in `patches`.
inline constexpr int64_t kPadding = INT64_MIN;
inline constexpr int64_t kIgnoreLabel = -100;
// What a device puts where a span leads beyond the buffers (asking the host would wait): no embedding takes it.
inline constexpr int64_t kNoToken = -1;
inline constexpr int kMostSentinels = 4;

// R rows of C tokens. A row's segments and spans tile it; their starts are counted from the row's first token. Tables
// may be longer than the last entry of segment_rows or span_rows says: what lies behind it is not looked at, so that a
// captured launch can be replayed with other tables of the same size.
struct FimPackParams {
  // One of the two sources. Tokens are uint16 or uint32.
  const void* rows = nullptr;            // (R, C)
  const uint8_t* loss_bits = nullptr;    // (R, ceil(C / 8)), lowest bit first: this token is a target that carries loss
  const void* buffer = nullptr;          // (buffer_size,)
  const void* patches = nullptr;         // (patches_size,)
  const int64_t* span_source = nullptr;  // (num_spans,) place in `buffer`, ~place in `patches`, or kPadding
  const int32_t* span_starts = nullptr;  // (num_spans,)
  const int64_t* span_rows = nullptr;    // (R + 1,) first span of each row
  const int32_t* segment_loss = nullptr;  // (num_segments,) from which token of its row on a segment carries loss

  const int32_t* segment_starts = nullptr;  // (num_segments,)
  const int64_t* segment_rows = nullptr;    // (R + 1,) first segment of each row

  int64_t* tokens = nullptr;      // (R * C,)
  int64_t* labels = nullptr;      // (R * C,) the next token where it carries loss, else kIgnoreLabel
  int64_t* positions = nullptr;   // (R * C,) from 0 in every segment
  int32_t* cu_seqlens = nullptr;  // (cu_length,) where segments start, then R * C

  int64_t num_rows = 0, context = 0;
  int64_t num_segments = 0, num_spans = 0, buffer_size = 0, patches_size = 0, cu_length = 0;
  int64_t pad_id = 0;
  int64_t sentinels[kMostSentinels] = {-1, -1, -1, -1};  // ids in patches that carry no loss; -1 for none
};

// Throws std::invalid_argument where tables, spans or sizes do not fit one another: nothing after it looks again.
// `token_bytes` is 2 or 4. The same result for any number of threads.
void unpack_rows(const FimPackParams& params, int token_bytes, unsigned threads);
void pack_spans(const FimPackParams& params, int token_bytes, unsigned threads);

// On the current device's stream; a cudaError_t as int.
int launch_unpack_rows(const FimPackParams& params, int token_bytes, void* stream);
int launch_pack_spans(const FimPackParams& params, int token_bytes, void* stream);

}  // namespace mify
