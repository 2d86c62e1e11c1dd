// What an attention kernel is told. Paged GQA for any mix of decode rows, chains and prefill chunks.
//
// A tile is up to `tile_tokens` tokens of one sequence with the query heads of one KV head: row r is token r / ratio, head
// r % ratio. Its KV range is cut into splits of `split_tokens` positions, each an item of work of its own; the results are put
// together by token. Lengths and pages are read from device memory.
#pragma once

#include "ascend/device/args/add_rms_norm.h"
#include "ascend/device/args/weight_layout.h"

namespace sigmoe::ascend {

constexpr int32_t kPagePositions = 128;   // P: kPageTokens of backend.h
constexpr int32_t kAttentionRows = 64;    // rows of a tile
constexpr int32_t kAttentionChunk = 256;  // KV positions that the cube and the vector cores pass to each other at a time
constexpr int32_t kMaxHeadDim = 256;
constexpr int32_t kMaxAttentionWidth = 8192;  // H * Dh: a row is put together whole
constexpr int32_t kMaxHeads = 128;

struct AttentionTiling {
  int32_t tokens, seqs, max_pages;  // T, B, columns of page_tables
  int32_t heads, kv_heads, head_dim;
  int32_t tile_tokens;
  int32_t split_tokens;  // a multiple of kAttentionChunk
  int32_t max_splits;
  int32_t shadow;        // ShadowKind of the narrow copy of out
  int32_t shadow_pitch;  // elements of it from row to row
  float scale;           // 1 / sqrt(Dh)
  // Bytes into the workspace. q in BF16; per group of cores two slots of scores, probabilities and products; per (token,
  // split, head) the sums, their maximum and their total, the latter two 8 times over.
  int64_t scores_at, probs_at, values_at, part_sums_at, part_highest_at, part_total_at;
};

}  // namespace sigmoe::ascend
