// What a block of few_attention.cu keeps in shared memory, how pages of keys and values get there, and attention over one page.
#pragma once

#include "cuda/device.cuh"
#include "cuda/few_rows.h"

namespace sigmoe::cuda::few {

using limits::few::kHeadDim, limits::few::kMostHeads;
constexpr int kCluster = 8;  // blocks of a row and KV head
constexpr int kWarps = 8, kThreads = kWarps * 32;
constexpr int kQuarters = 4, kTileKeys = 16;  // of a page: its tiles i and i + 4
constexpr int kRowVectors = kHeadDim / 8;     // of 16 bytes, of a key
constexpr int kSteps = kHeadDim / 32;         // of 32 dims along a key
constexpr int kQueryStride = kHeadDim + 32;   // elements: what eight lanes read at once is in different banks
static_assert(kPageTokens == 2 * kQuarters * kTileKeys && kMostHeads == kWarps);

struct AttentionArgs {
  BatchView batch;
  AttentionShape shape;
  FewAttention from;
  __nv_bfloat16 *k, *v;
  float* out;
  int n_buffers;
};

struct PageBuffer {
  uint4 keys[kPageTokens][kRowVectors];
  uint4 values[kPageTokens][kRowVectors];  // and sums, each warp's in place of what it alone has read
};

// Behind it lie the page buffers, then the parts of other blocks (few_parts.cuh).
struct alignas(128) AttentionShared {
  __nv_bfloat16 queries[kMostHeads][kQueryStride];
  float highest[kQuarters][kMostHeads], totals[kQuarters][kMostHeads];
  uint64_t arrived;  // counts the bytes of the parts

  __device__ PageBuffer& page(int i) { return reinterpret_cast<PageBuffer*>(this + 1)[i]; }
  __device__ float4* parts(int n_buffers) { return reinterpret_cast<float4*>(&page(n_buffers)); }
};

// One buffer leaves room on the SM for other kernels' blocks; more of them hide the loads of long contexts, as long as an SM
// has room for the parts of all pages, too.
inline int buffers_for(int max_pages) { return max_pages <= 16 ? 1 : max_pages <= 24 || max_pages > 56 ? 2 : 3; }

// Where vector c of row r lies: so that what eight lanes read at once is in different banks.
__device__ inline int key_place(int r, int c) { return c ^ (r & 1) << 2; }
__device__ inline int value_place(int r, int c) { return c ^ (r >> 1 & 3) << 1; }

struct Page {
  int64_t at;  // element offset of its first row
  int n_keys;
  bool is_last;
};
__device__ inline Page page_of(const AttentionArgs& args, int split, int page, int kv_head, int length) {
  const int left = length - split * kPageTokens;
  return {(static_cast<int64_t>(page) * args.shape.n_kv_heads + kv_head) * kPageTokens * kHeadDim, min(kPageTokens, left),
          left <= kPageTokens};
}

// The page's older keys and values on their way; of rows [n_keys, whole tiles) values are zero, because weight 0 times what
// lies there must be.
__device__ inline void copy_page(const AttentionArgs& args, const Page& page, PageBuffer& to) {
  const int c = threadIdx.x % kRowVectors, n_old = page.is_last ? page.n_keys - 1 : page.n_keys;
#pragma unroll 2
  for (int r = threadIdx.x / kRowVectors; r < n_old; r += kThreads / kRowVectors) {
    const int64_t at = page.at + r * kHeadDim + c * 8;
    copy_16_bytes(&to.keys[r][key_place(r, c)], args.k + at);
    copy_16_bytes(&to.values[r][value_place(r, c)], args.v + at);
  }
  const int end = (page.n_keys + kTileKeys - 1) / kTileKeys * kTileKeys;
  for (int r = page.n_keys + threadIdx.x / kRowVectors; r < end; r += kThreads / kRowVectors)
    to.values[r][c] = uint4{0, 0, 0, 0};
}

// The oldest of n_buffers pages on their way is here.
__device__ inline void wait_for_page(int n_buffers) {
  if (n_buffers == 1)
    wait_for_copies();
  else if (n_buffers == 2)
    wait_for_copies_but_last();
  else
    asm volatile("cp.async.wait_group 2;" ::: "memory");
}

// Lane: head g, dims 32 s + 8 q ..+7; rows 8 to 15 of the tensor core's operand are padding.
__device__ inline void load_queries(uint32_t (&query)[kSteps][4], const AttentionShared& shared, int n_group) {
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    const uint4 v = g < n_group ? *reinterpret_cast<const uint4*>(&shared.queries[g][32 * s + 8 * q]) : uint4{};
    query[s][0] = v.x, query[s][1] = v.y, query[s][2] = v.z, query[s][3] = v.w;
  }
}

// One tile's scores become weights against the highest so far; returns what sums so far are to be multiplied by.
__device__ inline float weigh(float (&score)[2][4], int first_key, int n_keys, int q, float& top, float& total) {
  float best = top;
#pragma unroll
  for (int j = 0; j < 2; ++j)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      if (first_key + 8 * j + 2 * q + e >= n_keys) score[j][e] = -INFINITY;
      best = fmaxf(best, score[j][e]);
    }
  best = fmaxf(best, __shfl_xor_sync(kAllLanes, best, 1));
  best = fmaxf(best, __shfl_xor_sync(kAllLanes, best, 2));
  const float keep = exp2f(top - best);  // the tile's first key always counts, so best is finite
  top = best;
  total *= keep;
#pragma unroll
  for (int j = 0; j < 2; ++j)
#pragma unroll
    for (int e = 0; e < 2; ++e) total += score[j][e] = exp2f(score[j][e] - best);
  return keep;
}

// sum (heads, half of the dims) += weights times the tile's values. Column n of product d is dim 64 half + 8 n + d.
__device__ inline void add_values(float (&sum)[8][4], const float (&score)[2][4], const PageBuffer& page, int base, int half,
                                  int g, int q) {
  const uint32_t p0 = pack_bf16(score[0][0], score[0][1]), p2 = pack_bf16(score[1][0], score[1][1]);
  uint4 value[4];
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const int r = base + 8 * (e / 2) + 2 * q + e % 2;
    value[e] = page.values[r][value_place(r, 8 * half + g)];
  }
#pragma unroll
  for (int d = 0; d < 8; ++d) {
    const auto word = [&](int e) { return d < 2 ? value[e].x : d < 4 ? value[e].y : d < 6 ? value[e].z : value[e].w; };
    const unsigned pick = d % 2 ? 0x7632 : 0x5410;
    mma_bf16(sum[d], p0, 0, p2, 0, __byte_perm(word(0), word(1), pick), __byte_perm(word(2), word(3), pick));
  }
}

// Sums of head h of a quarter and half, four of its 64 dims: in two rows of the quarter's values.
__device__ inline float4& sum_place(PageBuffer& page, int quarter, int half, int h, int vector) {
  return reinterpret_cast<float4*>(page.values[quarter * kTileKeys + 2 * h + vector / 8])[half * 8 + vector % 8];
}

// A warp's two tiles of the page and half of the dims; leaves sums, highest score and total in shared memory. The scores of
// both tiles go side by side; what follows is code for one tile that runs twice, because code comes from L2 the first time.
__device__ inline void attend(const uint32_t (&query)[kSteps][4], int n_keys, PageBuffer& page, AttentionShared& shared) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const int quarter = warp % kQuarters, half = warp / kQuarters;
  constexpr int kApart = kQuarters * kTileKeys;
  int base = quarter * kTileKeys;
  if (base >= n_keys) return;
  float score[2][2][4] = {};  // [tile][keys 8j..]: of head g keys 2q, 2q + 1
#pragma unroll
  for (int s = 0; s < kSteps; ++s)
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int r = base + i * kApart + 8 * j + g;  // past n_keys: scores that weigh() sets aside
        const uint4 key = page.keys[r][key_place(r, 4 * s + q)];
        mma_bf16(score[i][j], query[s][0], 0, query[s][1], 0, key.x, key.y);
        mma_bf16(score[i][j], query[s][2], 0, query[s][3], 0, key.z, key.w);
      }
  float top = -INFINITY, total = 0.0f, sum[8][4] = {};
#pragma unroll 1
  for (int i = 0; i < 2 && base < n_keys; ++i, base += kApart) {
    const float keep = weigh(score[0], base, n_keys, q, top, total);
#pragma unroll
    for (int d = 0; d < 8; ++d) sum[d][0] *= keep, sum[d][1] *= keep;
    add_values(sum, score[0], page, base, half, g, q);
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int e = 0; e < 2; ++e) score[0][j][e] = score[1][j][e];
  }
  total += __shfl_xor_sync(kAllLanes, total, 1);
  total += __shfl_xor_sync(kAllLanes, total, 2);
  __syncwarp();  // every lane has read its values
  if (q == 0 && half == 0) shared.highest[quarter][g] = top, shared.totals[quarter][g] = total;
#pragma unroll
  for (int e = 0; e < 2; ++e)
#pragma unroll
    for (int v = 0; v < 2; ++v)
      sum_place(page, quarter, half, g, 2 * (2 * q + e) + v) = {sum[4 * v][e], sum[4 * v + 1][e], sum[4 * v + 2][e],
                                                                sum[4 * v + 3][e]};
}

}  // namespace sigmoe::cuda::few
