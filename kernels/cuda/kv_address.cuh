// Where tokens lie in a paged KV cache: (pages, G, P, Dh) per layer.
#pragma once

#include "backend/backend.h"

namespace sigmoe::cuda {

// The sequence that row t belongs to: seq_offsets (B + 1) ascending.
__device__ inline int sequence_of(const BatchView& batch, int t) {
  if (batch.n_tokens == batch.n_seqs) return t;  // decode: a row each
  const int32_t* offsets = batch.seq_offsets;
  int low = 0, high = batch.n_seqs - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (offsets[middle] <= t)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

// Element offset of (position, head, 0).
__device__ inline int64_t kv_offset(const int32_t* pages, int position, int head, int n_kv_heads, int head_dim) {
  return ((static_cast<int64_t>(pages[position / kPageTokens]) * n_kv_heads + head) * kPageTokens + position % kPageTokens) *
         head_dim;
}

}  // namespace sigmoe::cuda
