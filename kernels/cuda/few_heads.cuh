// A decode row's queries, new key and new value, for few_attention.cu: norm and RoPE as in qk_norm_rope_store.
#pragma once

#include "cuda/few_page.cuh"
#include "cuda/ops.h"

namespace sigmoe::cuda::few {

constexpr int kLaneDims = kHeadDim / 32;  // of a head: lane + 32 i, so that the pairs of RoPE are a lane's own
static_assert(limits::few::kRotaryDim == 64);

// One head, by one warp.
struct Head {
  enum class Kind { query, key, value } kind;
  int number;  // of qkv's heads
  float norm[kLaneDims], cos, sin;
  float value[kLaneDims];

  // What is known before the row is. in_group: which of the KV head's queries.
  __device__ Head(const AttentionArgs& args, Kind of, int kv_head, int in_group, int position) : kind(of) {
    const int n_heads = args.shape.n_heads, n_kv = args.shape.n_kv_heads, lane = threadIdx.x % 32;
    number = kind == Kind::query ? kv_head * (n_heads / n_kv) + in_group : n_heads + kv_head + (kind == Kind::key ? 0 : n_kv);
    cos = args.from.cos[static_cast<int64_t>(position) * 32 + lane];
    sin = args.from.sin[static_cast<int64_t>(position) * 32 + lane];
    const float* weight = norm_of(args);
#pragma unroll
    for (int i = 0; i < kLaneDims; ++i) norm[i] = weight ? weight[lane + 32 * i] : 1.0f;
  }

  __device__ void load(const AttentionArgs& args, int t) {
    const int n_heads = args.shape.n_heads + 2 * args.shape.n_kv_heads;
    const float* from = args.from.qkv + (static_cast<int64_t>(t) * n_heads + number) * kHeadDim + threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < kLaneDims; ++i) value[i] = __ldcg(from + 32 * i);
  }

  __device__ void norm_and_rotate(const AttentionArgs& args) {
    if (norm_of(args)) {
      float squares = 0.0f;
#pragma unroll
      for (int i = 0; i < kLaneDims; ++i) squares += value[i] * value[i];
      const float inverse = 1.0f / sqrtf(warp_sum(squares) / kHeadDim + args.from.eps);
#pragma unroll
      for (int i = 0; i < kLaneDims; ++i) value[i] = value[i] * inverse * norm[i];
    }
    if (kind != Kind::value) rotate(value[0], value[1], cos, sin);
  }

  // A query to shared memory, scaled so that scores are exponents of two.
  __device__ void keep_query(__nv_bfloat16* to) const {
    const float scale = query_factor(kHeadDim);
#pragma unroll
    for (int i = 0; i < kLaneDims; ++i) to[threadIdx.x % 32 + 32 * i] = __float2bfloat16_rn(value[i] * scale);
  }

  // The new key or value to the cache and to the page here, whose last row it is.
  __device__ void keep_new(const AttentionArgs& args, const Page& page, PageBuffer& to) const {
    const bool is_key = kind == Kind::key;
    const int row = page.n_keys - 1, lane = threadIdx.x % 32;
    __nv_bfloat16* cache = (is_key ? args.k : args.v) + page.at + row * kHeadDim + lane;
    auto* here = reinterpret_cast<__nv_bfloat16*>(is_key ? to.keys[row] : to.values[row]);
#pragma unroll
    for (int i = 0; i < kLaneDims; ++i) {
      const int c = (lane + 32 * i) / 8;
      const __nv_bfloat16 rounded = __float2bfloat16_rn(value[i]);
      here[(is_key ? key_place(row, c) : value_place(row, c)) * 8 + lane % 8] = rounded;
      cache[32 * i] = rounded;
    }
  }

 private:
  __device__ const float* norm_of(const AttentionArgs& args) const {
    return kind == Kind::query ? args.from.q_norm : kind == Kind::key ? args.from.k_norm : nullptr;
  }
};

}  // namespace sigmoe::cuda::few
