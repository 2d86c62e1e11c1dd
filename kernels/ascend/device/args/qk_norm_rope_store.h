// What kernel qk_norm_rope_store is told by value.
#pragma once

#include <cstdint>

namespace sigmoe::ascend {

constexpr int32_t kKvPageTokens = 128;  // P: tokens of a KV page

struct QkNormRopeStoreTiling {
  int32_t n_tokens;   // T
  int32_t n_seqs;     // B
  int32_t max_pages;  // columns of the page tables
  int32_t n_heads, n_kv_heads, head_dim;
  int32_t half;               // pairs of dims that RoPE turns: dim j with dim j + half
  int32_t half_pitch;         // columns that either half takes in UB; `half` where a head may lie there as it is
  int32_t pitch;              // columns that a head takes in UB
  int32_t q_heads, kv_heads;  // heads of one kind that a core works on at a time
  int32_t has_q_norm, has_k_norm;
  int32_t kv_bf16;  // else the cache is float32
  float eps;
  float one_over_head_dim;
};

}  // namespace sigmoe::ascend
