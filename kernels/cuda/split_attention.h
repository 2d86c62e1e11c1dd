// Attention of a few decode rows in one kernel: see split_attention.cu.
#pragma once

#include "cuda/ops.h"

namespace sigmoe::cuda {

// qk_norm_rope_store and attention of rows [0, T), each the only one of its sequence, BF16 pages. Reads positions, page tables
// and older keys before the kernels ahead are done: all of them must be older than the kernel ahead of those.
struct DecodeAttention {
  const float* qkv = nullptr;  // (T, (H + 2G) * Dh)
  const float *q_norm = nullptr, *k_norm = nullptr, *cos = nullptr, *sin = nullptr;
  float eps = 0.0f;
};
void launch_decode_attention(const Queue& queue, const BatchView& batch, const AttentionShape& shape,
                             const DecodeAttention& from, const KvView& kv, const SplitScratch& scratch, float* out);

}  // namespace sigmoe::cuda
