// What a block of few_attention.cu gathers before it attends: its page of keys and values in shared memory, its query heads
// through norm and RoPE, and the row's new key and value, which it stores.
#pragma once

#include "cuda/device.cuh"
#include "cuda/few_rows.h"
#include "cuda/kv_address.cuh"

namespace sigmoe::cuda::few {

using limits::few::kHeadDim, limits::few::kMostHeads, limits::few::kMostPages;
constexpr int kWarps = 4, kTileKeys = 16;
constexpr int kCluster = 8;
constexpr int kRowVectors = kHeadDim / 8;    // of 16 bytes, of a key
constexpr int kPartialWidth = kHeadDim + 4;  // floats of a split's result: sums, maximum (base 2) and total
constexpr int kHeadStride = kHeadDim + 4;    // floats: eight heads' vectors lie in different banks
static_assert(kPageTokens == 2 * kWarps * kTileKeys);

struct AttentionArgs {
  BatchView batch;
  AttentionShape shape;
  int n_splits_max;
  FewAttention from;
  __nv_bfloat16 *k, *v;
  float* partial;     // (rows, H, splits, kPartialWidth)
  int32_t* arrivals;  // (rows, G)
  float* out;
};

// What heads go through that is known before they are: weights of the norms (1 where there is none) and the row's angles.
struct HeadConstants {
  float q_norm[kHeadDim], k_norm[kHeadDim], cos[kHeadDim / 2], sin[kHeadDim / 2];

  __device__ void load(const FewAttention& from, int position, int half) {
    for (int i = threadIdx.x; i < kHeadDim; i += kWarps * 32) {
      q_norm[i] = from.q_norm ? from.q_norm[i] : 1.0f;
      k_norm[i] = from.k_norm ? from.k_norm[i] : 1.0f;
    }
    for (int j = threadIdx.x; j < half; j += kWarps * 32) {
      cos[j] = from.cos[static_cast<int64_t>(position) * half + j];
      sin[j] = from.sin[static_cast<int64_t>(position) * half + j];
    }
  }
};

struct AttentionShared {
  union {
    uint4 keys[kPageTokens][kRowVectors];
    float sums[kWarps][kMostHeads][kHeadDim];  // once the keys have been read
  };
  uint4 values[kPageTokens][kRowVectors];
  float heads[kMostHeads + 2][kHeadStride];  // queries as they come out of RoPE, then the new key and value
  HeadConstants constants;
  float highest[kWarps][kMostHeads], totals[kWarps][kMostHeads];
  float split_tops[kMostHeads][kMostPages], split_totals[kMostHeads][kMostPages];
  bool last;
};

// Where vector c of row r lies: so that what eight lanes read at once is in different banks.
__device__ inline int key_place(int r, int c) { return c ^ (r & 1) << 2; }
__device__ inline int value_place(int r, int c) { return c ^ (r >> 1 & 3) << 1; }

// Keys and values [0, n_old) of the page on their way; of rows [n_keys, whole tiles) values are zero, because weight 0 times
// what lies there must be.
__device__ inline void copy_page(const AttentionArgs& args, int64_t page_at, int n_old, int n_keys, AttentionShared& shared) {
  const int c = threadIdx.x % kRowVectors;
  for (int r = threadIdx.x / kRowVectors; r < n_old; r += kWarps * 32 / kRowVectors) {
    const int64_t at = page_at + r * kHeadDim + c * 8;
    copy_16_bytes(&shared.keys[r][key_place(r, c)], args.k + at);
    copy_16_bytes(&shared.values[r][value_place(r, c)], args.v + at);
  }
  for (int r = n_keys + threadIdx.x / kRowVectors; r < (n_keys + kTileKeys - 1) / kTileKeys * kTileKeys;
       r += kWarps * 32 / kRowVectors)
    shared.values[r][c] = uint4{0, 0, 0, 0};
}

// The group's query heads; with `stores` the new key and value too, to `at` in the cache and to row `row` of the page here. A
// head to a warp at a time, all of a warp's heads on their way at once.
__device__ inline void make_heads(const AttentionArgs& args, int t, int kv_head, bool stores, int64_t at, int row,
                                  AttentionShared& shared) {
  constexpr int kMost = (kMostHeads + 2 + kWarps - 1) / kWarps, kLaneDims = kHeadDim / 32;
  const AttentionShape& shape = args.shape;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, n_kv = shape.n_kv_heads, half = shape.rotary_dim / 2;
  const int n_group = shape.n_heads / n_kv, n = n_group + (stores ? 2 : 0);
  const float* qkv = args.from.qkv + static_cast<int64_t>(t) * (shape.n_heads + 2 * n_kv) * kHeadDim;
  float source[kMost][kLaneDims];
#pragma unroll
  for (int m = 0; m < kMost; ++m)
    if (const int h = warp + m * kWarps; h < n) {
      const int number = h < n_group ? kv_head * n_group + h : shape.n_heads + (h - n_group) * n_kv + kv_head;
#pragma unroll
      for (int i = 0; i < kLaneDims; ++i) source[m][i] = qkv[number * kHeadDim + lane + 32 * i];
    }
  let_next_start();
#pragma unroll
  for (int m = 0; m < kMost; ++m) {
    const int h = warp + m * kWarps;
    if (h >= n) continue;
    const bool is_query = h < n_group, is_value = h == n_group + 1;
    const bool normed = (is_query ? args.from.q_norm : is_value ? nullptr : args.from.k_norm) != nullptr;
    float* head = shared.heads[h];
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < kLaneDims; ++i) squares += source[m][i] * source[m][i];
    const float inverse = normed ? 1.0f / sqrtf(warp_sum(squares) / kHeadDim + args.from.eps) : 1.0f;
    const float* weight = is_query ? shared.constants.q_norm : shared.constants.k_norm;
#pragma unroll
    for (int i = 0; i < kLaneDims; ++i)
      head[lane + 32 * i] = normed ? source[m][i] * inverse * weight[lane + 32 * i] : source[m][i];
    __syncwarp();
    if (!is_value)
      for (int j = lane; j < half; j += 32) {
        const float c = shared.constants.cos[j], s = shared.constants.sin[j], a = head[j], b = head[j + half];
        head[j] = a * c - b * s;
        head[j + half] = b * c + a * s;
      }
    if (is_query) continue;
    __syncwarp();
    if (lane >= kRowVectors) continue;
    const float* own = head + 8 * lane;
    const uint4 packed = {pack_bf16(own[0], own[1]), pack_bf16(own[2], own[3]), pack_bf16(own[4], own[5]),
                          pack_bf16(own[6], own[7])};
    *reinterpret_cast<uint4*>((is_value ? args.v : args.k) + at + 8 * lane) = packed;
    (is_value ? shared.values[row][value_place(row, lane)] : shared.keys[row][key_place(row, lane)]) = packed;
  }
}

}  // namespace sigmoe::cuda::few
