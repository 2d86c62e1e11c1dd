// 64 query rows against pages of keys and values, by one warpgroup: what prefill and decode attention have in common.
//
// Rows are packed: row r of a tile is head r % group of token r / group, so one read of a page serves every query head of its
// KV head. Queries stay in registers (scaled so that scores are exponents of two), pages lie in shared memory as the copy
// engine puts them, scores and sums are tensor-core accumulators. A row meets its keys page by page from the first, with a
// running maximum; pages and rows that are none of its business change no bit of it.
//
// A thread's share of a product: lane (g, q) = (lane / 4, lane % 4) of warp w holds rows 16 w + g and 16 w + g + 8, of them
// columns 8 n + 2 q and the next, for every n. [2 h + i] of four values: row g + 8 h, column 2 q + i.
#pragma once

#include <cmath>

#include "backend/backend.h"
#include "cuda/hopper.cuh"
#include "cuda/kernel_choice.h"
#include "cuda/kv_fp8.cuh"
#include "cuda/ops.h"

namespace sigmoe::cuda::hopper {

constexpr int kTileRows = 64;
static_assert(kTileRows >= kHopperGroupHeads);
template <int HD>
constexpr int kPageBytes = HD* kPageTokens * 2;  // K or V of a page and KV head

#if SIGMOE_HOPPER_CODE

// kKeys: of a tile, 64 or 128.
template <int HD, int kKeys>
struct RowTile {
  static constexpr int kBoxBytes = kKeys * 128;
  using Scores = float[kKeys / 2];
  using Weights = uint32_t[kKeys / 16][4];
  uint32_t query[HD / 16][4];
  float sum[HD / 2];
  float top[2], total[2];  // total: of this thread's columns

  // from[h]: the query of row g + 8 h, null for a row that is padding; in BF16 times query_factor(HD).
  template <typename T>
  __device__ void begin(const T* const (&from)[2]) {
    const float scale = query_factor(HD);
    const int q = threadIdx.x % 4;
#pragma unroll
    for (int s = 0; s < HD / 16; ++s)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const T* at = from[i % 2];
        query[s][i] = 0;
        if (!at) continue;
        at += 16 * s + 8 * (i / 2) + 2 * q;
        if constexpr (sizeof(T) == 2) {
          query[s][i] = *reinterpret_cast<const uint32_t*>(at);
        } else {
          const float2 pair = *reinterpret_cast<const float2*>(at);
          query[s][i] = pack_bf16(pair.x * scale, pair.y * scale);
        }
      }
#pragma unroll
    for (int i = 0; i < HD / 2; ++i) sum[i] = 0.0f;
    top[0] = top[1] = -INFINITY;
    total[0] = total[1] = 0.0f;
  }

  // Enqueues score (64, keys) = query keys^T.
  __device__ void enqueue_scores(Scores& score, const std::byte* keys) const {
    const uint64_t base = describe_rows_n(keys);
#pragma unroll
    for (int s = 0; s < HD / 16; ++s) wgmma<false>(score, query[s], base + (s / 4 * kBoxBytes + s % 4 * 32) / 16, s > 0);
    wgmma_commit();
  }

  // Enqueues sum += weights values.
  __device__ void enqueue_sums(const Weights& weights, const std::byte* values) {
    const uint64_t base = describe_rows_k(values, kBoxBytes);
#pragma unroll
    for (int s = 0; s < kKeys / 16; ++s) wgmma<true>(sum, weights[s], base + s * 2048 / 16, 1);
    wgmma_commit();
  }

  // Scores become weights relative to the rows' new maxima; keep: what sums so far must be multiplied by. Of n_halves 8 rows of
  // the warp; scores of the others, which are padding, stay.
  __device__ void weigh(Scores& score, float (&keep)[2], int n_halves = 2) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      keep[h] = 1.0f;
      if (h >= n_halves) continue;
      float best = top[h], other = -INFINITY;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
        best = fmaxf(best, score[4 * n + 2 * h]);
        other = fmaxf(other, score[4 * n + 2 * h + 1]);
      }
      best = fmaxf(best, other);
      best = fmaxf(best, __shfl_xor_sync(kAllLanes, best, 1));
      best = fmaxf(best, __shfl_xor_sync(kAllLanes, best, 2));
      keep[h] = exp2_fast(top[h] - best);  // best is finite: a tile's first key counts for each of its rows
      top[h] = best;
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (h >= n_halves) continue;
      float even = 0.0f, odd = 0.0f;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
        even += score[4 * n + 2 * h] = exp2_fast(score[4 * n + 2 * h] - top[h]);
        odd += score[4 * n + 2 * h + 1] = exp2_fast(score[4 * n + 2 * h + 1] - top[h]);
      }
      total[h] = total[h] * keep[h] + (even + odd);
    }
  }

  __device__ void rescale(const float (&keep)[2]) {
    if (!__any_sync(kAllLanes, keep[0] != 1.0f || keep[1] != 1.0f)) return;
#pragma unroll
    for (int i = 0; i < HD / 2; ++i) sum[i] *= keep[i / 2 % 2];
  }

  // Over all columns; once, at the end.
  __device__ void add_up_totals() {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      total[h] += __shfl_xor_sync(kAllLanes, total[h], 1);
      total[h] += __shfl_xor_sync(kAllLanes, total[h], 2);
    }
  }
};

// Keys past a row's last one weigh nothing. Key 0 of the page is key `first_key` of the sequence.
template <int n>
__device__ inline void mask_scores(float (&score)[n], const int (&last_key)[2], int first_key) {
  const int q = threadIdx.x % 4;
#pragma unroll
  for (int i = 0; i < n; ++i)
    if (first_key + 8 * (i / 4) + 2 * q + i % 2 > last_key[i / 2 % 2]) score[i] = -INFINITY;
}

// Weights as the left operand of the next product.
template <int n>
__device__ inline void pack_weights(uint32_t (&weights)[n][4], const float (&score)[8 * n]) {
#pragma unroll
  for (int s = 0; s < n; ++s)
#pragma unroll
    for (int i = 0; i < 4; ++i) weights[s][i] = pack_bf16(score[8 * s + 2 * i], score[8 * s + 2 * i + 1]);
}

// Values of tokens [n_valid, kKeys) of a tile, left there by whoever had it before, become zero: weight 0 times NaN is NaN. By
// all threads of a warpgroup, which then meet at the named barrier.
template <int HD, int kKeys>
__device__ inline void clear_values(std::byte* values, int n_valid, int barrier) {
  constexpr int kBoxBytes = kKeys * 128;
  for (int box = 0; box < HD / 64; ++box)
    for (int at = n_valid * 128 + static_cast<int>(threadIdx.x % 128) * 16; at < kBoxBytes; at += 128 * 16)
      *reinterpret_cast<uint4*>(values + box * kBoxBytes + at) = uint4{0, 0, 0, 0};
  fence_async_proxy();
  named_sync(barrier, 128);
}

// An FP8 tile, as it lies in its page, with its scales behind it, becomes what a tile of BF16 would be; tokens from n_valid on
// become zero. By all threads of a warpgroup, some of a token's codes each, going round the row from another place so that no
// bank is crowded; they meet at a barrier before a tensor core reads the tile.
template <int HD, int kKeys>
__device__ inline void expand_tile(const std::byte* codes, std::byte* tile, int n_valid) {
  constexpr int kChunks = HD / 16, kShares = 128 / kKeys;
  const int token = threadIdx.x % kKeys, share = threadIdx.x % 128 / kKeys;
  const __nv_bfloat162 scale = expanding_scale(reinterpret_cast<const float*>(codes + kKeys * HD)[token]);
#pragma unroll
  for (int c = 0; c < kChunks / kShares; ++c) {
    const int chunk = (c * kShares + share + token) % kChunks;
    uint4 values[2] = {};
    if (token < n_valid) expand_sixteen(*reinterpret_cast<const uint4*>(codes + token * HD + chunk * 16), scale, values);
    std::byte* row = tile + chunk / 4 * (kKeys * 128) + token * 128;
#pragma unroll
    for (int i = 0; i < 2; ++i) *reinterpret_cast<uint4*>(row + ((chunk % 4 * 2 + i) ^ (token % 8)) * 16) = values[i];
  }
  fence_async_proxy();
}

#endif  // SIGMOE_HOPPER_CODE

}  // namespace sigmoe::cuda::hopper
