// Split-KV grouped-query attention over BF16 pages.
//
// Bound: memory, each K and V byte once for all query heads of its group. A block takes one row, one KV head and one
// run of keys; its 4 warps take 16 keys at a time straight from the page into tensor-core fragments (dims and keys are
// permuted alike on both sides of each product, so no byte passes through shared memory). The last block of a row and head
// adds the runs up in order. How a row is cut depends on its own length alone, so neighbours never change its bits.
#include <cmath>

#include "cuda/device.cuh"
#include "cuda/kernel_choice.h"
#include "cuda/kv_address.cuh"
#include "cuda/ops.h"
#include "cuda/split_attention.h"

namespace sigmoe::cuda {
namespace {

constexpr int kSplitWarps = 4;
constexpr int kTileKeys = 16;
constexpr int kLeastSplit = 2 * kSplitWarps * kTileKeys;  // keys
constexpr int kMostKeySplits = 64;
constexpr int kMaxGroupHeads = kSplitGroupHeads;

// Keys per split of a row that sees `length` of them.
__host__ __device__ inline int split_length(int length) {
  int keys = kLeastSplit;
  while (keys * kMostKeySplits < length) keys *= 2;
  return keys;
}

// Floats of a split's partial result: the sums of a head, its maximum and total, and padding to whole vectors.
__host__ __device__ constexpr int partial_width(int head_dim) { return head_dim + 4; }

__device__ inline void add_scaled(float4& sum, const float4& value, float scale) {
  sum.x += value.x * scale, sum.y += value.y * scale, sum.z += value.z * scale, sum.w += value.w * scale;
}

template <int HD>
struct SplitArgs {
  BatchView batch;
  AttentionShape shape;
  int first_row, n_splits_max;
  int most_rows;  // not 0: row i is row i % most_rows of sequence i / most_rows, if that has at most most_rows
  const float* q;
  const __nv_bfloat16 *k, *v;
  float* partial;     // (rows, H, splits, partial_width): sums, then maximum (base 2) and total
  int32_t* arrivals;  // (rows, G)
  float* out;
  uint2* twin;  // out in BF16 too, or null

  __device__ void write(int64_t at, float4 sum, float total) const {
    const float4 value = {sum.x / total, sum.y / total, sum.z / total, sum.w / total};
    *reinterpret_cast<float4*>(out + at) = value;
    if (twin) twin[at / 4] = {pack_bf16(value.x, value.y), pack_bf16(value.z, value.w)};
  }
};

template <int HD>
__global__ void __launch_bounds__(kSplitWarps * 32) split_attention_kernel(const __grid_constant__ SplitArgs<HD> args) {
  constexpr int kSteps = HD / 32;    // of 32 dims along a key
  constexpr int kLaneDims = HD / 8;  // dims of V a lane holds
  constexpr int kVectors = HD / 64;  // 16-byte loads of them
  __shared__ __align__(16) float sums[kSplitWarps][kMaxGroupHeads][HD];
  __shared__ float highest[kSplitWarps][kMaxGroupHeads], totals[kSplitWarps][kMaxGroupHeads];
  __shared__ float split_tops[kMaxGroupHeads][kMostKeySplits], split_totals[kMaxGroupHeads][kMostKeySplits];
  __shared__ bool last;
  let_next_start();
  wait_for_previous();

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const int split = blockIdx.x, kv_head = blockIdx.y, local_row = blockIdx.z;
  int t = args.first_row + local_row;
  if (args.most_rows > 0) {
    const int seq = t / args.most_rows, begin = args.batch.seq_offsets[seq], n_rows = args.batch.seq_offsets[seq + 1] - begin;
    const int row = t % args.most_rows;
    if (n_rows > args.most_rows || row >= n_rows) return;
    t = begin + row;
  }
  const AttentionShape& shape = args.shape;
  const int n_group = shape.n_heads / shape.n_kv_heads, n_kv = shape.n_kv_heads;
  const int length = args.batch.positions[t] + 1, split_keys = split_length(length),
            n_splits = (length + split_keys - 1) / split_keys;
  if (split >= n_splits) return;
  const int key_begin = split * split_keys, key_end = min(length, key_begin + split_keys);
  const int32_t* pages = args.batch.page_tables + static_cast<int64_t>(sequence_of(args.batch, t)) * args.batch.max_pages;
  const int64_t row_heads = static_cast<int64_t>(t) * shape.n_heads + kv_head * n_group;

  // Queries of the group, scaled so that scores are exponents of two. Lane: heads g and g + 8, dims 32 s + 8 q ..+7.
  const float scale = query_factor(HD);
  uint32_t query[kSteps][2][4];
#pragma unroll
  for (int s = 0; s < kSteps; ++s)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int head = g + 8 * h;
      const auto* from = reinterpret_cast<const float4*>(args.q + (row_heads + head) * HD + 32 * s + 8 * q);
      const float4 zero = {0.0f, 0.0f, 0.0f, 0.0f}, a = head < n_group ? from[0] : zero, b = head < n_group ? from[1] : zero;
      query[s][h][0] = pack_bf16(a.x * scale, a.y * scale);
      query[s][h][1] = pack_bf16(a.z * scale, a.w * scale);
      query[s][h][2] = pack_bf16(b.x * scale, b.y * scale);
      query[s][h][3] = pack_bf16(b.z * scale, b.w * scale);
    }

  float sum[kLaneDims][4] = {};
  float top[2] = {-INFINITY, -INFINITY}, total[2] = {0.0f, 0.0f};
  uint4 key[2][kSteps], value[4][kVectors];
  // Element offset of key i of the tile at `base`. A tile never leaves its page; keys past the end repeat the last one and get
  // no weight.
  const auto key_at = [&](int64_t tile_at, int base, int i) {
    return tile_at + static_cast<int64_t>(min(i, length - 1 - base)) * HD;
  };
  const auto load_keys = [&](int64_t tile_at, int base) {
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int s = 0; s < kSteps; ++s) key[j][s] = load_stream(args.k + key_at(tile_at, base, 8 * j + g) + 32 * s + 8 * q);
  };
  const auto load_values = [&](int64_t tile_at, int base) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int v = 0; v < kVectors; ++v)
        value[i][v] = load_stream(args.v + key_at(tile_at, base, 8 * (i / 2) + 2 * q + i % 2) + kLaneDims * g + 8 * v);
  };
  constexpr int kStride = kSplitWarps * kTileKeys;
  int base = key_begin + warp * kTileKeys;
  if (base < key_end) {
    const int64_t tile_at = kv_offset(pages, base, kv_head, n_kv, HD);
    load_keys(tile_at, base);
    load_values(tile_at, base);
  }
  for (; base < key_end; base += kStride) {
    // The next tile's keys are asked for once these are used, its values likewise.
    const bool more = base + kStride < key_end;
    const int64_t next_at = more ? kv_offset(pages, base + kStride, kv_head, n_kv, HD) : 0;
    float score[2][4] = {};  // [keys 8j..][heads g: keys 2q, 2q + 1; heads g + 8: likewise]
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        mma_bf16(score[j], query[s][0][0], query[s][1][0], query[s][0][1], query[s][1][1], key[j][s].x, key[j][s].y);
        mma_bf16(score[j], query[s][0][2], query[s][1][2], query[s][0][3], query[s][1][3], key[j][s].z, key[j][s].w);
      }
    if (more) load_keys(next_at, base + kStride);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float best = top[h];
#pragma unroll
      for (int j = 0; j < 2; ++j)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          if (base + 8 * j + 2 * q + i >= key_end) score[j][2 * h + i] = -INFINITY;
          best = fmaxf(best, score[j][2 * h + i]);
        }
      best = fmaxf(best, __shfl_xor_sync(kAllLanes, best, 1));
      best = fmaxf(best, __shfl_xor_sync(kAllLanes, best, 2));
      const float keep = exp2f(top[h] - best);  // the tile's first key always counts, so best is finite
      top[h] = best;
      total[h] *= keep;
#pragma unroll
      for (int j = 0; j < 2; ++j)
#pragma unroll
        for (int i = 0; i < 2; ++i) total[h] += score[j][2 * h + i] = exp2f(score[j][2 * h + i] - best);
#pragma unroll
      for (int d = 0; d < kLaneDims; ++d) sum[d][2 * h] *= keep, sum[d][2 * h + 1] *= keep;
    }
    const uint32_t p0 = pack_bf16(score[0][0], score[0][1]), p1 = pack_bf16(score[0][2], score[0][3]),
                   p2 = pack_bf16(score[1][0], score[1][1]), p3 = pack_bf16(score[1][2], score[1][3]);
#pragma unroll
    for (int d = 0; d < kLaneDims; ++d) {  // column n of product d is dim kLaneDims * n + d
      const auto word = [&](int i) {
        const uint4& v = value[i][d / 8];
        return d % 8 < 2 ? v.x : d % 8 < 4 ? v.y : d % 8 < 6 ? v.z : v.w;
      };
      const unsigned pick = d % 2 ? 0x7632 : 0x5410;
      mma_bf16(sum[d], p0, p1, p2, p3, __byte_perm(word(0), word(1), pick), __byte_perm(word(2), word(3), pick));
    }
    if (more) load_values(next_at, base + kStride);
  }

  // Meet in shared memory: warps of this split, in order.
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    total[h] += __shfl_xor_sync(kAllLanes, total[h], 1);
    total[h] += __shfl_xor_sync(kAllLanes, total[h], 2);
    const int head = g + 8 * h;
    if (head >= n_group) continue;
    if (q == 0) highest[warp][head] = top[h], totals[warp][head] = total[h];
#pragma unroll
    for (int d = 0; d < kLaneDims; ++d) {
      sums[warp][head][kLaneDims * (2 * q) + d] = sum[d][2 * h];
      sums[warp][head][kLaneDims * (2 * q + 1) + d] = sum[d][2 * h + 1];
    }
  }
  __syncthreads();
  if (threadIdx.x < n_group) {  // one thread per head: what each warp's sums weigh
    const int head = threadIdx.x;
    float best = -INFINITY, all = 0.0f;
    for (int w = 0; w < kSplitWarps; ++w) best = fmaxf(best, highest[w][head]);
    for (int w = 0; w < kSplitWarps; ++w) {
      const float weight = exp2f(highest[w][head] - best);  // 0 for a warp without keys
      highest[w][head] = weight;
      all += totals[w][head] * weight;
    }
    split_tops[head][0] = best;
    split_totals[head][0] = all;
  }
  __syncthreads();
  const int64_t partial_row = static_cast<int64_t>(local_row) * shape.n_heads + kv_head * n_group;
  for (int index = threadIdx.x; index < n_group * HD / 4; index += kSplitWarps * 32) {
    const int head = index / (HD / 4), d = index % (HD / 4) * 4;
    float4 value = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
    for (int w = 0; w < kSplitWarps; ++w)
      add_scaled(value, *reinterpret_cast<const float4*>(&sums[w][head][d]), highest[w][head]);
    const float all = split_totals[head][0];
    if (n_splits == 1) {
      args.write((row_heads + head) * HD + d, value, all);
      continue;
    }
    float* partial = args.partial + ((partial_row + head) * args.n_splits_max + split) * partial_width(HD);
    *reinterpret_cast<float4*>(partial + d) = value;
    if (d == 0) partial[HD] = split_tops[head][0], partial[HD + 1] = all;
  }
  if (n_splits == 1) return;

  // The last block to arrive adds the splits, in order, and leaves the counter as it found it.
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    int32_t* arrivals = args.arrivals + local_row * n_kv + kv_head;
    last = atomicAdd(arrivals, 1) == n_splits - 1;
    if (last) *arrivals = 0;
  }
  __syncthreads();
  if (!last) return;
  __threadfence();
  const float* all_splits = args.partial + partial_row * args.n_splits_max * partial_width(HD);
  // Weights of the splits first: one thread per (head, split), then a head's maximum and total over its row of them.
  for (int index = threadIdx.x; index < n_group * n_splits; index += kSplitWarps * 32) {
    const int head = index / n_splits, s = index % n_splits;
    const float2 top_and_total =
        __ldcg(reinterpret_cast<const float2*>(all_splits + (head * args.n_splits_max + s) * partial_width(HD) + HD));
    split_tops[head][s] = top_and_total.x;
    split_totals[head][s] = top_and_total.y;
  }
  __syncthreads();
  for (int head = warp; head < n_group; head += kSplitWarps) {
    float best = -INFINITY, all = 0.0f;
    for (int s = lane; s < n_splits; s += 32) best = fmaxf(best, split_tops[head][s]);
    for (int step = 16; step > 0; step /= 2) best = fmaxf(best, __shfl_xor_sync(kAllLanes, best, step));
    for (int s = lane; s < n_splits; s += 32) {
      const float weight = exp2f(split_tops[head][s] - best);
      split_tops[head][s] = weight;
      all += split_totals[head][s] * weight;
    }
    all = warp_sum(all);
    if (lane == 0) totals[0][head] = all;
  }
  __syncthreads();
  for (int index = threadIdx.x; index < n_group * HD / 4; index += kSplitWarps * 32) {
    const int head = index / (HD / 4), d = index % (HD / 4) * 4;
    const float* partial = all_splits + head * args.n_splits_max * partial_width(HD) + d;
    float4 value = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 8
    for (int s = 0; s < n_splits; ++s)
      add_scaled(value, __ldcg(reinterpret_cast<const float4*>(partial + s * partial_width(HD))), split_tops[head][s]);
    args.write((row_heads + head) * HD + d, value, totals[0][head]);
  }
}

template <int HD>
void launch_split(const Queue& queue, const BatchView& batch, const AttentionShape& shape, int first_row, int n_rows,
                  int most_rows, const float* q, const KvView& kv, const SplitScratch& scratch, float* out, void* twin) {
  const int n_splits = max_splits(batch.max_pages);
  const SplitArgs<HD> args{batch,
                           shape,
                           first_row,
                           n_splits,
                           most_rows,
                           q,
                           static_cast<const __nv_bfloat16*>(kv.k),
                           static_cast<const __nv_bfloat16*>(kv.v),
                           scratch.partial,
                           scratch.arrivals,
                           out,
                           static_cast<uint2*>(twin)};
  launch(queue, split_attention_kernel<HD>, dim3(n_splits, shape.n_kv_heads, n_rows), kSplitWarps * 32, 0, args);
}

}  // namespace

int max_splits(int max_pages) { return std::min(kMostKeySplits, std::max(1, max_pages * kPageTokens / kLeastSplit)); }

size_t split_partial_bytes(const AttentionShape& shape, int n_rows, int max_pages) {
  return sizeof(float) * n_rows * shape.n_heads * max_splits(max_pages) * partial_width(shape.head_dim);
}

void launch_split_attention(const Queue& queue, const BatchView& batch, const AttentionShape& shape, int most_rows,
                            int first_row, int n_rows, const float* q, const KvView& kv, const SplitScratch& scratch,
                            float* out, void* twin) {
  if (shape.head_dim == 128)
    launch_split<128>(queue, batch, shape, first_row, n_rows, most_rows, q, kv, scratch, out, twin);
  else
    launch_split<64>(queue, batch, shape, first_row, n_rows, most_rows, q, kv, scratch, out, twin);
}

}  // namespace sigmoe::cuda
