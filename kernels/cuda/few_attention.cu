// Attention of a few decode rows in one kernel: norms and RoPE of the row's queries and its key, the store of key and value,
// split-KV attention over BF16 pages, and the sum over splits. Rows are a sequence each, of up to 8,192 keys.
//
// Bound: latency: a megabyte of keys and values, but one dependent step behind the other. A block has a row, a KV head and a
// page of keys; the page's older keys and values are on their way to shared memory before the kernel ahead is done. Every block
// makes its eight query heads itself, the row's last one the new key and value too. Up to eight splits meet through each
// other's shared memory (a cluster), more of them in device memory, where the last to arrive adds them up. Norms and RoPE are
// those of qk_norm_rope_store, keys and sums go in the order of split_attention: the bits are the same.
#include <cmath>

#include "cuda/few_heads.cuh"

namespace sigmoe::cuda {
namespace {

using namespace few;

__device__ inline void add_scaled(float4& sum, const float4& value, float scale) {
  sum.x += value.x * scale, sum.y += value.y * scale, sum.z += value.z * scale, sum.w += value.w * scale;
}
__device__ inline float4 divided(const float4& value, float by) {
  return {value.x / by, value.y / by, value.z / by, value.w / by};
}

// Waits for every warp of the cluster's blocks; what they wrote to shared memory before is visible.
__device__ inline void cluster_sync() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

// What lies at `address` in the shared memory of block `rank` of the cluster.
__device__ inline float4 of_block(const float4& address, int rank) {
  float4 v = {};
#if __CUDA_ARCH__ >= 900
  asm volatile("{\n.reg .b32 at;\nmapa.shared::cluster.u32 at, %4, %5;\nld.shared::cluster.v4.f32 {%0,%1,%2,%3}, [at];\n}"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(&address))), "r"(rank)
               : "memory");
#endif
  return v;
}
__device__ inline float of_block(const float& address, int rank) {
  float v = 0.0f;
#if __CUDA_ARCH__ >= 900
  asm volatile("{\n.reg .b32 at;\nmapa.shared::cluster.u32 at, %1, %2;\nld.shared::cluster.f32 %0, [at];\n}"
               : "=f"(v)
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(&address))), "r"(rank)
               : "memory");
#endif
  return v;
}

__global__ void __launch_bounds__(kWarps * 32, 3) few_attention_kernel(const __grid_constant__ AttentionArgs args) {
  constexpr int kSteps = kHeadDim / 32;                              // of 32 dims along a key
  constexpr int kLaneDims = kHeadDim / 8, kVectors = kLaneDims / 8;  // of a value, that a lane has: 64 v + 8 g ..+7
  extern __shared__ __align__(16) std::byte raw[];
  AttentionShared& shared = *reinterpret_cast<AttentionShared*>(raw);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const int split = blockIdx.x, kv_head = blockIdx.y, t = blockIdx.z;
  const AttentionShape& shape = args.shape;
  const int n_group = shape.n_heads / shape.n_kv_heads, n_kv = shape.n_kv_heads;
  // The next kernel starts by asking for megabytes of weights: not before this one has its data, or all of it waits in line.
  // A step's positions and pages and the keys of older tokens are older than the kernel ahead of the one ahead.
  const int32_t* pages = args.batch.page_tables + static_cast<int64_t>(t) * args.batch.max_pages;
  const int page = pages[min(split, args.batch.max_pages - 1)];  // before it is known whether the row has it
  const int length = args.batch.positions[t] + 1, n_splits = (length + kPageTokens - 1) / kPageTokens;
  if (split >= n_splits) return;
  const int n_keys = min(kPageTokens, length - split * kPageTokens);
  const bool stores = split == n_splits - 1;
  const int64_t page_at = (static_cast<int64_t>(page) * n_kv + kv_head) * kPageTokens * kHeadDim;
  copy_page(args, page_at, stores ? n_keys - 1 : n_keys, n_keys, shared);
  shared.constants.load(args.from, length - 1, shape.rotary_dim / 2);
  __syncthreads();
  wait_for_previous();
  make_heads(args, t, kv_head, stores, page_at + (n_keys - 1) * kHeadDim, n_keys - 1, shared);
  wait_for_copies();
  __syncthreads();

  // Queries of the group, scaled so that scores are exponents of two. Lane: head g, dims 32 s + 8 q ..+7; rows 8 to 15 of the
  // tensor core's operand are padding.
  const float scale = 1.44269504f / sqrtf(static_cast<float>(kHeadDim));
  uint32_t query[kSteps][4] = {};
  if (g < n_group)
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const auto* from = reinterpret_cast<const float4*>(&shared.heads[g][32 * s + 8 * q]);
      const float4 a = from[0], b = from[1];
      query[s][0] = pack_bf16(a.x * scale, a.y * scale);
      query[s][1] = pack_bf16(a.z * scale, a.w * scale);
      query[s][2] = pack_bf16(b.x * scale, b.y * scale);
      query[s][3] = pack_bf16(b.z * scale, b.w * scale);
    }
  float sum[kLaneDims][4] = {}, top = -INFINITY, total = 0.0f;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int base = (i * kWarps + warp) * kTileKeys;
    if (base >= n_keys) break;
    float score[2][4] = {};  // [keys 8j..]: of head g keys 2q, 2q + 1
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        const int r = base + 8 * j + g;
        const uint4 key = shared.keys[r][key_place(r, 4 * s + q)];
        mma_bf16(score[j], query[s][0], 0, query[s][1], 0, key.x, key.y);
        mma_bf16(score[j], query[s][2], 0, query[s][3], 0, key.z, key.w);
      }
    float best = top;
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        if (base + 8 * j + 2 * q + e >= n_keys) score[j][e] = -INFINITY;
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
#pragma unroll
    for (int d = 0; d < kLaneDims; ++d) sum[d][0] *= keep, sum[d][1] *= keep;
    const uint32_t p0 = pack_bf16(score[0][0], score[0][1]), p2 = pack_bf16(score[1][0], score[1][1]);
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      uint4 value[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int r = base + 8 * (e / 2) + 2 * q + e % 2;
        value[e] = shared.values[r][value_place(r, 8 * v + g)];
      }
#pragma unroll
      for (int d = 0; d < 8; ++d) {  // column n of product 8 v + d is dim 64 v + 8 n + d
        const auto word = [&](int e) { return d < 2 ? value[e].x : d < 4 ? value[e].y : d < 6 ? value[e].z : value[e].w; };
        const unsigned pick = d % 2 ? 0x7632 : 0x5410;
        mma_bf16(sum[8 * v + d], p0, 0, p2, 0, __byte_perm(word(0), word(1), pick), __byte_perm(word(2), word(3), pick));
      }
    }
  }

  // Warps of this split meet, in order.
  total += __shfl_xor_sync(kAllLanes, total, 1);
  total += __shfl_xor_sync(kAllLanes, total, 2);
  __syncthreads();  // the keys have been read
  if (g < n_group) {
    if (q == 0) shared.highest[warp][g] = top, shared.totals[warp][g] = total;
#pragma unroll
    for (int d = 0; d < kLaneDims; ++d)
#pragma unroll
      for (int e = 0; e < 2; ++e) shared.sums[warp][g][d / 8 * 64 + 8 * (2 * q + e) + d % 8] = sum[d][e];
  }
  __syncthreads();
  if (threadIdx.x < n_group) {  // one thread per head: what each warp's sums weigh
    const int head = threadIdx.x;
    float best = -INFINITY, all = 0.0f;
    for (int w = 0; w < kWarps; ++w) best = fmaxf(best, shared.highest[w][head]);
    for (int w = 0; w < kWarps; ++w) {
      const float weight = exp2f(shared.highest[w][head] - best);  // 0 for a warp without keys
      shared.highest[w][head] = weight;
      all += shared.totals[w][head] * weight;
    }
    shared.split_tops[head][0] = best;
    shared.split_totals[head][0] = all;
  }
  __syncthreads();
  const bool by_cluster = n_splits > 1 && n_splits <= kCluster;
  const int64_t row_heads = static_cast<int64_t>(t) * shape.n_heads + kv_head * n_group;
  for (int index = threadIdx.x; index < n_group * kHeadDim / 4; index += kWarps * 32) {
    const int head = index / (kHeadDim / 4), d = index % (kHeadDim / 4) * 4;
    float4 value = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
    for (int w = 0; w < kWarps; ++w)
      add_scaled(value, *reinterpret_cast<const float4*>(&shared.sums[w][head][d]), shared.highest[w][head]);
    const float all = shared.split_totals[head][0];
    if (n_splits == 1) {
      *reinterpret_cast<float4*>(args.out + (row_heads + head) * kHeadDim + d) = divided(value, all);
    } else if (by_cluster) {
      *reinterpret_cast<float4*>(&shared.sums[0][head][d]) = value;  // of these sums this thread alone has need
    } else {
      float* partial = args.partial + ((row_heads + head) * args.n_splits_max + split) * kPartialWidth;
      *reinterpret_cast<float4*>(partial + d) = value;
      if (d == 0) partial[kHeadDim] = shared.split_tops[head][0], partial[kHeadDim + 1] = all;
    }
  }
  if (n_splits == 1) return;
  if (by_cluster) {  // a head to a warp of one of the blocks
    cluster_sync();
    const int head = split + n_splits * warp, d = lane * 4;
    if (head < n_group) {
      const float split_top = lane < n_splits ? of_block(shared.split_tops[head][0], lane) : -INFINITY;
      const float split_total = lane < n_splits ? of_block(shared.split_totals[head][0], lane) : 0.0f;
      float4 parts[kCluster], value = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
      for (int s = 0; s < kCluster; ++s)
        if (s < n_splits) parts[s] = of_block(*reinterpret_cast<const float4*>(&shared.sums[0][head][d]), s);
      float best = split_top;
      for (int step = 16; step > 0; step /= 2) best = fmaxf(best, __shfl_xor_sync(kAllLanes, best, step));
      const float weight = exp2f(split_top - best);
      const float all = warp_sum(split_total * weight);
#pragma unroll
      for (int s = 0; s < kCluster; ++s) {
        const float of_split = __shfl_sync(kAllLanes, weight, s);
        if (s < n_splits) add_scaled(value, parts[s], of_split);
      }
      *reinterpret_cast<float4*>(args.out + (row_heads + head) * kHeadDim + d) = divided(value, all);
    }
    cluster_sync();  // nobody leaves while others read
    return;
  }

  // The last block to arrive adds the splits, in order, and leaves the counter as it found it.
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    int32_t* arrivals = args.arrivals + t * n_kv + kv_head;
    shared.last = atomicAdd(arrivals, 1) == n_splits - 1;
    if (shared.last) *arrivals = 0;
  }
  __syncthreads();
  if (!shared.last) return;
  __threadfence();
  const float* all_splits = args.partial + row_heads * args.n_splits_max * kPartialWidth;
  for (int index = threadIdx.x; index < n_group * n_splits; index += kWarps * 32) {
    const int head = index / n_splits, s = index % n_splits;
    const float2 state =
        __ldcg(reinterpret_cast<const float2*>(all_splits + (head * args.n_splits_max + s) * kPartialWidth + kHeadDim));
    shared.split_tops[head][s] = state.x;
    shared.split_totals[head][s] = state.y;
  }
  __syncthreads();
  for (int head = warp; head < n_group; head += kWarps) {
    float best = -INFINITY, all = 0.0f;
    for (int s = lane; s < n_splits; s += 32) best = fmaxf(best, shared.split_tops[head][s]);
    for (int step = 16; step > 0; step /= 2) best = fmaxf(best, __shfl_xor_sync(kAllLanes, best, step));
    for (int s = lane; s < n_splits; s += 32) {
      const float weight = exp2f(shared.split_tops[head][s] - best);
      shared.split_tops[head][s] = weight;
      all += shared.split_totals[head][s] * weight;
    }
    all = warp_sum(all);
    if (lane == 0) shared.totals[0][head] = all;
  }
  __syncthreads();
  for (int index = threadIdx.x; index < n_group * kHeadDim / 4; index += kWarps * 32) {
    const int head = index / (kHeadDim / 4), d = index % (kHeadDim / 4) * 4;
    const float* partial = all_splits + head * args.n_splits_max * kPartialWidth + d;
    float4 value = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 8
    for (int s = 0; s < n_splits; ++s)
      add_scaled(value, __ldcg(reinterpret_cast<const float4*>(partial + s * kPartialWidth)), shared.split_tops[head][s]);
    *reinterpret_cast<float4*>(args.out + (row_heads + head) * kHeadDim + d) = divided(value, shared.totals[0][head]);
  }
}

}  // namespace

void launch_few_attention(const Queue& queue, const BatchView& batch, const AttentionShape& shape, const FewAttention& from,
                          const KvView& kv, const SplitScratch& scratch, float* out) {
  const int n_splits = max_splits(batch.max_pages);
  const AttentionArgs args{batch,
                           shape,
                           n_splits,
                           from,
                           static_cast<__nv_bfloat16*>(kv.k),
                           static_cast<__nv_bfloat16*>(kv.v),
                           scratch.partial,
                           scratch.arrivals,
                           out};
  CUDA_CHECK(cudaFuncSetAttribute(few_attention_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(AttentionShared)));
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = kCluster;
  attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(divide_up(n_splits, kCluster) * kCluster, shape.n_kv_heads, batch.n_tokens);
  config.blockDim = kWarps * 32;
  config.dynamicSmemBytes = sizeof(AttentionShared);
  config.stream = queue.stream;
  config.attrs = attributes;
  config.numAttrs = 2;
  CUDA_CHECK(cudaLaunchKernelEx(&config, few_attention_kernel, args));
}

}  // namespace sigmoe::cuda
