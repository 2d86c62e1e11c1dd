// How attention of prompts is dealt to persistent blocks: which rows of which sequence are whose next.
#pragma once

#include <algorithm>

#include "cuda/attention_tile.cuh"
#include "cuda/step_tables.cuh"

namespace sigmoe::cuda::hopper {

constexpr int kPrefillGroups = 2;                            // warpgroups of 64 rows
constexpr int kPrefillThreads = 128 * (1 + kPrefillGroups);  // and one that copies

// Sequences [first_seq, first_seq + n_seqs) of a step, of them those with at least least_rows rows in it.
struct PrefillRows {
  BatchView batch;
  int n_heads, n_kv_heads, least_rows;
  int first_seq, n_seqs;
};

// Tokens [row, row + n_rows) of the step against their sequence's keys up to the last of them.
struct PrefillTile {
  int seq, kv_head, row, n_rows, first_position, n_pages;
};

// The n-th tile of this block; false when there are no more. A tile without pages is to be passed over.
__device__ inline bool pick_tile(const PrefillRows& rows, const StepTable& table, int n, PrefillTile& tile) {
  const int group = rows.n_heads / rows.n_kv_heads, tile_tokens = kPrefillGroups * (kTileRows / group);
  const int origin = table.offsets[0];
  const auto first_slot = [&](int b) { return (table.offsets[b] - origin) / tile_tokens + b; };
  const int n_slots = first_slot(rows.n_seqs), block = blockIdx.x, n_blocks = gridDim.x;
  const int order = n * n_blocks + (n % 2 == 0 ? block : n_blocks - 1 - block);
  if (n * n_blocks >= n_slots * rows.n_kv_heads) return false;
  tile.n_pages = 0;
  if (order >= n_slots * rows.n_kv_heads) return true;
  const int slot = n_slots - 1 - order / rows.n_kv_heads;
  const int b = last_at_most(rows.n_seqs, slot, first_slot);
  const int begin = table.offsets[b], end = table.offsets[b + 1], token = (slot - first_slot(b)) * tile_tokens;
  if (end - begin < rows.least_rows || begin + token >= end) return true;
  tile.seq = b;
  tile.kv_head = order % rows.n_kv_heads;
  tile.row = begin + token;
  tile.n_rows = min(tile_tokens, end - tile.row);
  tile.first_position = table.first_positions[b] + token;
  tile.n_pages = (tile.first_position + tile.n_rows + kPageTokens - 1) / kPageTokens;
  return true;
}

// Blocks for all tiles, at most one for each SM.
inline int prefill_blocks(const PrefillRows& rows) {
  int device = 0, n_sms = 0;
  CUDA_CHECK(cudaGetDevice(&device));
  CUDA_CHECK(cudaDeviceGetAttribute(&n_sms, cudaDevAttrMultiProcessorCount, device));
  const int tile_tokens = kPrefillGroups * (kTileRows / (rows.n_heads / rows.n_kv_heads));
  const int n_tiles = (rows.batch.n_tokens / tile_tokens + rows.n_seqs) * rows.n_kv_heads;  // no fewer than there are
  return std::min(n_tiles, n_sms);
}

}  // namespace sigmoe::cuda::hopper
